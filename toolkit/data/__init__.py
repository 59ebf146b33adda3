"""Data: sources to documents, documents to splits, splits to packed token blocks."""
