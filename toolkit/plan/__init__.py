"""A plan before any money is spent: is this the right tool, what will it take, which settings."""
