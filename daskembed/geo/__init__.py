"""Numbers of places: MGRS squares, grids of chips, footprints; no files."""
