"""The commands `generate` and `chat`. Nothing slow is imported before one runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli.options import Runs, seed_option

NewTokens = Annotated[int, typer.Option(help="Tokens of an answer at most.")]
Temperature = Annotated[
    float, typer.Option(help="0 takes the likeliest token; more draws more freely.")
]
TopP = Annotated[float, typer.Option(help="Draw among the likeliest, up to this probability.")]
Seed = Annotated[int, seed_option("Of the draws.")]
System = Annotated[str, typer.Option(help="What the model is told before all else.")]


def generate(
    models: Annotated[list[str], typer.Argument(help="path[@revision][+adapter]; one or several.")],
    prompt: Annotated[list[str], typer.Option(help="What to ask; once for each prompt.")],
    new_tokens: NewTokens = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    system: System = "",
    plain: Annotated[
        bool, typer.Option("--plain", help="Continue the text; no chat template.")
    ] = False,
) -> None:
    """Answers of one or several models to the same prompts, side by side, as they come."""
    from toolkit.generate.chat_model import load_speaker
    from toolkit.generate.stream import SamplingSettings
    from toolkit.generate.terminal import show_answers
    from toolkit.progress import say

    settings = SamplingSettings(new_tokens, temperature, top_p, seed)
    speakers = [load_speaker(model, label=model, plain=plain) for model in models]
    opening_messages = [{"role": "system", "content": system}] if system else []
    for text in prompt:
        if len(prompt) > 1:
            say(f"> {text}")
        show_answers(speakers, [*opening_messages, {"role": "user", "content": text}], settings)


def chat(
    model: Annotated[str, typer.Argument(help="A recipe whose merge is done, or a model folder.")],
    runs: Runs = Path("runs"),
    new_tokens: NewTokens = 512,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    system: System = "",
) -> None:
    """Talk with a recipe's merged model, or with any other."""
    from toolkit.errors import ConfigError
    from toolkit.generate.chat_model import load_speaker
    from toolkit.generate.stream import SamplingSettings
    from toolkit.generate.terminal import run_chat

    model_place = model
    if "/" not in model:
        merged_model = runs / model / "merge"
        if not (merged_model / "manifest.json").is_file():
            raise ConfigError(
                f"{merged_model}: no merged model is there; run `toolkit merge choose {model}` "
                f"first, or give a model's folder (one that lies here as ./{model})."
            )
        model_place = str(merged_model)
    settings = SamplingSettings(new_tokens, temperature, top_p, seed)
    run_chat(load_speaker(model_place, label=model), settings, system=system)
