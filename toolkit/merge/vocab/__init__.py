"""Vocabularies of merges: one for all models, and every model's rows in its order."""
