"""What a published system claims, and what a run of its recipe shows of it."""
