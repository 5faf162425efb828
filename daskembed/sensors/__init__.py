"""Bands and sensors: what encoders and files agree on."""
