"""Scenes of STAC catalogues: found, chosen, and read where they lie."""
