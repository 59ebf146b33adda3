"""Prompts for a look at what a model says, written for this package."""

from __future__ import annotations

GENERAL_PROMPTS: tuple[str, ...] = (
    "Explain in two sentences why the sky is blue.",
    "A train leaves at 9:15 and arrives at 11:45. How long does the journey take?",
    "Write a short, friendly note to a neighbor whose parcel I have accepted.",
    "Give three tips for someone who starts to cook at home.",
)
"""What any assistant is asked: an explanation, a small sum, a note, advice."""
