"""Runs: what is to be done, the one window through the cluster, and what is told of it."""
