"""The choice: the largest domain gain among the merges that keep the general ability."""
