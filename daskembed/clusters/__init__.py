"""Clusters started, connected to, proved and closed."""

# The class of the preset `local`, and so of cluster files that were copied from it.
from daskembed.clusters.this_machine import local as local
