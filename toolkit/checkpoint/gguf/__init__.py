"""GGUF files: read, written, compared."""
