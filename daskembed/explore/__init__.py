"""Looking at published embeddings: a preview, and a search for similar places; reads what anybody could read."""
