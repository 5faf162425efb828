"""Exported files checked against what they promise: one module a kind."""
