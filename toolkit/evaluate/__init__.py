"""Evaluation: losses of documents, and statistics that say how sure they are."""
