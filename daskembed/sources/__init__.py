"""Where chips come from: one module a kind of source."""
