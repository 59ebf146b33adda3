"""Measures of published models, from their config.json."""

from __future__ import annotations

from toolkit.checkpoint.config import ShapeSection

SMOL = ShapeSection(
    hidden_size=576,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    intermediate_size=1536,
    vocab_size=49152,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
)
LLAMA_3_70B = ShapeSection(
    hidden_size=8192,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    intermediate_size=28672,
    vocab_size=128256,
    max_position_embeddings=8192,
)
MIXTRAL = ShapeSection(
    hidden_size=4096,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    intermediate_size=14336,
    vocab_size=32000,
    max_position_embeddings=32768,
    num_experts=8,
    num_experts_per_tok=2,
)
ROUND = ShapeSection(  # numbers to work with by hand
    hidden_size=10,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=20,
    vocab_size=100,
    max_position_embeddings=64,
)
