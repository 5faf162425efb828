"""What a run leaves: published files, what is known of them, and how they are read and checked."""
