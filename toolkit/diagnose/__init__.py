"""What a merge did to its parents, in figures: how far, how alike, what was lost on the way."""
