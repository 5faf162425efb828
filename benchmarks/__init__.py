"""Benchmarks: ``python -m benchmarks NAME [--json FILE]``; results in README.md beside this file."""
