"""The report: a table for the terminal, a page for the browser."""
