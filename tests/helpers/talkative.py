"""Settings of tiny random models that do not say the same token again and again."""

TALKATIVE = {"tie_word_embeddings": False, "initializer_range": 0.5}
