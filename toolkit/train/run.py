"""The cpt stage: general model and packed data in, `runs/<recipe>/cpt/` with the specialist out."""

from __future__ import annotations

from pathlib import Path

import torch

from toolkit.checkpoint.folder import save_model, stored_dtype
from toolkit.checkpoint.load import load_causal_model
from toolkit.checkpoint.resume import remove_states
from toolkit.data.blocks import Blocks
from toolkit.errors import DataError
from toolkit.manifest import Stage
from toolkit.progress import say
from toolkit.train.config import TrainSection
from toolkit.train.loop import train


def run_train(section: TrainSection, stage: Stage, general: Path, data: Path) -> None:
    """Train the general model on the data stage's blocks and write the specialist.

    The specialist is stored in the general model's own type, with one cast from float32.

    Raises:
        DataError: the blocks hold tokens that the model has no embedding for.
    """
    blocks = Blocks.open(data, section.epochs)
    with stage.running() as work:
        model = load_causal_model(general, torch.float32)
        vocabulary = model.get_input_embeddings().weight.shape[0]
        if blocks.largest_token >= vocabulary:
            raise DataError(
                f"{data}: holds token {blocks.largest_token}, but the model's vocabulary has "
                f"{vocabulary}; its tokenizer and weights do not belong together."
            )
        results = train(model, blocks, section, seed=stage.seed, work=work)
        save_model(model, work, dtype=stored_dtype(general), like=general)
        remove_states(work)
        stage.finish(results)
    say(
        f"  {results['num_steps']} steps, loss {results['first_loss']:.3f} -> "
        f"{results['last_loss']:.3f}, {results['tokens_per_second']:.0f} tokens/s"
    )
