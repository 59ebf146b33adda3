"""LoRA adapters: extracted from tuned models, and merged with each other.

Errors are measured on the factors as they are stored, against the change they stand for.
"""
