"""Statistics on the ground: what a difference between models on the same items is worth."""
