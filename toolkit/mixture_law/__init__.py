"""The law of mixture: small runs, a fit, and what it says of the share of the domain."""
