"""Stores, local and cloud alike: URLs, failures, readers, atomic writes."""
