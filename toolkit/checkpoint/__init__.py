"""Model folders: opened, read, written, and the states of training."""
