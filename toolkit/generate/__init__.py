"""Answers of models: for the report in batches, in the terminal as they come."""
