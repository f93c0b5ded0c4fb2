"""One file per audio encoder."""
