"""Facts of one's own documents: questions that ask for them, and texts that say them again."""
