"""Serving copies of an output: its published rows in other files, for those who read all of them."""
