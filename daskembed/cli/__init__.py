"""The command: flags, words and live display; the only layer that names flags."""
