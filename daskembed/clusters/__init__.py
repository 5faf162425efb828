"""Clusters started, connected to, proved and closed."""
