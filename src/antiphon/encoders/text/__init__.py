"""One file per text encoder."""
