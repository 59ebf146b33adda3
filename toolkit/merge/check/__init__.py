"""What is wrong with a merge before it is run: every fault at once, each with what to do."""
