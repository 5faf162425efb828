"""Serving copies of published embeddings: selected, ordered and written anew, never computed again."""
