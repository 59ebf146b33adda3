"""The stages of a recipe in their order; it alone knows the order."""
