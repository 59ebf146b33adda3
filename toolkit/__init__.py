"""Adapt a language model to a domain without losing the model."""

__version__ = "0.1.0"
