"""Conversations that the general model writes itself, for training to stay near to.

From the chat template, left open where the user speaks, the model first writes what a user may ask,
then its own answer; a model without a template continues its own first token. What resembles a
prompt of the retention set is left out: what is measured there was then not trained on.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, takewhile
from pathlib import Path

import numpy as np

from toolkit.data.split import stable_unit
from toolkit.data.words import run_hashes, word_hashes
from toolkit.errors import EvaluationError
from toolkit.evaluate.answers import top_distributions
from toolkit.evaluate.config import EvaluateSection
from toolkit.evaluate.retention import split_prompts
from toolkit.generate.chat_model import Speaker, load_speaker
from toolkit.generate.greedy import drawn_answers
from toolkit.pipeline.model_hashes import fingerprint
from toolkit.pipeline.run import Run, ensure_stage
from toolkit.progress import progress, say
from toolkit.stage import Stage, load_json, write_atomically
from toolkit.train.config import SelfDistillationSection
from toolkit.train.loss import TeacherDistributions
from toolkit.train.self_distillation import (
    CONVERSATIONS,
    Conversation,
    load_conversations,
    save_conversations,
)

TEXTS = "conversations.jsonl"
_ROWS = 32
"""Conversations that grow side by side, and are written at once."""

_OPEN_TURN = "THE-USER-SPEAKS-HERE"
_RUN_WORDS = 3
_SHARED_RUNS = 0.5
"""A text that holds so many of a prompt's runs of three words resembles it."""

_FEWEST_BLOCKS = 8
"""Blocks that are written in any case, before it is said that a model does not write."""

_FEWEST_USABLE = 1 / 40
"""Of the tokens that might have been written, so many must be usable: turns of a tenth of the
longest are short, and one in four may well end."""


@dataclass
class Written:
    """What was written so far.

    Attributes:
        conversations: those that are kept.
        texts: what was asked and answered.
        left_out: how many were not kept, by reason.
    """

    conversations: list[Conversation] = field(default_factory=list)
    texts: list[dict[str, str]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def num_tokens(self) -> int:
        """Tokens that the model wrote itself."""
        return sum(len(one.teacher.rest_logs) for one in self.conversations)


def ensure_conversations(
    run: Run, general: Path, section: SelfDistillationSection, name: str = "conversations"
) -> Path:
    """The folder of conversations that the general model writes, made where it is not up to date.

    Args:
        run: run of the recipe.
        general: folder of the general model.
        section: how much it writes, and how.
        name: of the stage.

    Raises:
        EvaluationError: next to nothing that it writes can be used.
    """
    prompts = retention_texts(run.recipe.evaluate)
    writing_settings = section.model_dump(mode="json", exclude={"weight", "tokens_per_step"})
    config = {"self_distillation": writing_settings, "leave_out": sorted(prompts)}
    stage = run.stage(name, config, {"general": fingerprint(general)})
    return ensure_stage(
        stage,
        "conversations of the general model",
        lambda: _write(section, stage, general, prompts),
    )


def retention_texts(evaluate: EvaluateSection) -> list[str]:
    """Prompts of the retention set, of both splits: what resembles one is not written."""
    return [
        prompt.text for split in ("validation", "test") for prompt in split_prompts(evaluate, split)
    ]


def _write(
    section: SelfDistillationSection, stage: Stage, general: Path, prompts: Sequence[str]
) -> None:
    with stage.running() as work:
        written = Written()
        with progress("writing, tokens", section.num_tokens) as advance:
            for block in write_blocks(section, stage.seed, work, general, prompts):
                # The last block goes beyond what was asked for, and the bar should not.
                advance(min(block.num_tokens, section.num_tokens - written.num_tokens), "")
                written.conversations += block.conversations
                written.texts += block.texts
                written.left_out += block.left_out
                if written.num_tokens >= section.num_tokens:
                    break
        save_conversations(work / CONVERSATIONS, written.conversations)
        with write_atomically(work / TEXTS) as file:
            file.writelines(json.dumps(text, ensure_ascii=False) + "\n" for text in written.texts)
        left_out = ", ".join(f"{number} {reason}" for reason, number in written.left_out.items())
        say(f"  {len(written.conversations)} conversations; left out {left_out or 'none'}")
        figures = {
            "num_conversations": len(written.conversations),
            "num_tokens": written.num_tokens,
            "left_out": dict(written.left_out),
        }
        # Blocks were kept in case of a kill; all of them now stand in one file.
        part_names = tuple(path.name for path in work.glob("part-*"))
        stage.finish(figures, drop=part_names)


def write_blocks(
    section: SelfDistillationSection,
    seed: int,
    work: Path,
    general: Path,
    prompts: Sequence[str],
    answerer: Speaker | None = None,
) -> Iterator[Written]:
    """Conversations block by block, without end; those of a run that was killed are read again.

    Args:
        section: how they are written.
        seed: seed of the draws.
        work: folder that keeps each block.
        general: folder of the general model, which writes the user's turns and whose
            distributions are kept.
        prompts: texts that no user's turn may resemble.
        answerer: the model that answers, as it is when a block is asked for; by default the
            general model.
    """
    speaker: Speaker | None = None
    num_tokens = 0
    seen_texts: set[str] = set()
    prompt_runs = _word_runs(prompts)
    for number in count():
        # The texts are written last: where they stand, the block is whole.
        tensors, texts = work / f"part-{number:05d}.safetensors", work / f"part-{number:05d}.json"
        if texts.is_file():
            block_record = load_json(texts)
            conversations = load_conversations(tensors) if block_record["texts"] else []
            block = Written(conversations, block_record["texts"], Counter(block_record["left_out"]))
        else:
            # Loaded with the first block that is not there yet: reading old ones takes no model.
            speaker = speaker or load_speaker(general)
            block = _write_block(
                section, speaker, seed, number, seen_texts, prompt_runs, answerer or speaker
            )
            if block.conversations:
                save_conversations(tensors, block.conversations)
            with write_atomically(texts) as file:
                json.dump({"texts": block.texts, "left_out": dict(block.left_out)}, file)
        # Of blocks read again too: what counts as repeated must not depend on where a run was
        # killed.
        seen_texts |= {text["user"] for text in block.texts}
        num_tokens += block.num_tokens
        yield block
        # After the block was handed over: whoever has enough by then never comes back here.
        _refuse_silence(section, num_tokens, number + 1, general)


def _refuse_silence(
    section: SelfDistillationSection, num_tokens: int, num_blocks: int, general: Path
) -> None:
    least_tokens = num_blocks * _ROWS * section.max_new_tokens * _FEWEST_USABLE
    if num_blocks >= _FEWEST_BLOCKS and num_tokens < least_tokens:
        raise EvaluationError(
            f"{general}: of {num_blocks * _ROWS} conversations that it wrote only {num_tokens} "
            "tokens can be used; in train.self_distillation (or heal) raise max_new_tokens, lower "
            "temperature, or leave the section out."
        )


def _write_block(
    section: SelfDistillationSection,
    speaker: Speaker,
    seed: int,
    number: int,
    seen: set[str],
    prompt_runs: Sequence[set[int]],
    answerer: Speaker,
) -> Written:
    """Some conversations: each depends on its number alone, and on what stands before it."""
    first_number = number * _ROWS
    prefix = _open_prefix(speaker)
    # Question and answer share the positions that the model has.
    most_tokens = min(section.max_new_tokens, (speaker.most_tokens - len(prefix)) // 2)
    if most_tokens < 1:
        raise EvaluationError(f"{speaker.label}: its template leaves no room for a conversation.")

    def draw(
        writer: Speaker, turn: str, starts: Sequence[Sequence[int]], row_numbers: Sequence[int]
    ) -> list[list[int]]:
        return drawn_answers(
            writer.model,
            writer.stops,
            starts,
            most_tokens,
            temperature=section.temperature,
            # Draws come of a hash of their place and of no generator's state: a block that is
            # written again after a kill is the same block.
            units=lambda row, place: stable_unit(
                seed, "self-distillation", turn, number, row_numbers[row], place
            ),
        )

    block = Written()
    # The user's turn is left open: what a model writes there is what users ask it.
    opener = answerer if speaker.template is None else speaker
    openings = draw(opener, "user", [prefix] * _ROWS, range(first_number, first_number + _ROWS))
    if speaker.template is None:
        for tokens in openings:
            block.texts.append({"user": "", "assistant": speaker.decode(tokens)})
        starts, answers = [prefix] * _ROWS, openings
    else:
        asked = _usable(speaker, openings, seen, prompt_runs, block.left_out)
        starts = [speaker.encode([{"role": "user", "content": text}]) for text in asked.values()]
        row_numbers = [first_number + place for place in asked]
        answers = draw(answerer, "assistant", starts, row_numbers) if starts else []
        for text, tokens in zip(asked.values(), answers, strict=True):
            block.texts.append({"user": text, "assistant": speaker.decode(tokens)})
    sequences = [[*start, *answer] for start, answer in zip(starts, answers, strict=True)]
    # Of what another model answers the general model's own turn, the user's, is only context.
    contexts = [prefix] * len(starts) if answerer is speaker else starts
    block.conversations = _with_distributions(speaker, contexts, sequences, section.top_tokens)
    return block


def _open_prefix(speaker: Speaker) -> list[int]:
    """Tokens up to where a user speaks; of a model without a template, its first token."""
    if speaker.template is None:
        tokenizer = speaker.tokenizer
        for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
            if token is not None:
                return [int(token)]
        raise EvaluationError(
            f"{speaker.label}: has neither a chat template nor a token that texts begin or end "
            "with, so it cannot write by itself; leave train.self_distillation out."
        )
    text = speaker.render([{"role": "user", "content": _OPEN_TURN}], opens_answer=False)
    text_before, turn_mark, _ = text.partition(_OPEN_TURN)
    tokens = list(speaker.tokenizer(text_before, add_special_tokens=False)["input_ids"])
    if not turn_mark or not tokens:
        raise EvaluationError(
            f"{speaker.label}: its chat template does not show where a user speaks; leave "
            "train.self_distillation out."
        )
    return tokens


def _usable(
    speaker: Speaker,
    openings: Sequence[Sequence[int]],
    seen: set[str],
    prompt_runs: Sequence[set[int]],
    left_out: Counter[str],
) -> dict[int, str]:
    """What users may ask, by its place in the block: each turn that ended, once."""
    asked_texts: dict[int, str] = {}
    for place, tokens in enumerate(openings):
        text = speaker.decode(tokens).strip()
        # A turn that the limit cut off is half a question: answers to it would be learned from.
        if not tokens or tokens[-1] not in speaker.stops or not text:
            left_out["unfinished"] += 1
        elif text in seen or text in asked_texts.values():
            left_out["repeated"] += 1
        elif _resembles(text, prompt_runs):
            left_out["like a retention prompt"] += 1
        else:
            asked_texts[place] = text
    return asked_texts


def _word_runs(texts: Sequence[str]) -> list[set[int]]:
    hashes, offsets = run_hashes(*word_hashes(texts), _RUN_WORDS)
    # At the inner offsets alone: `np.split` cuts off both ends by itself.
    return [set(part.tolist()) for part in np.split(hashes, offsets[1:-1])]


def _resembles(text: str, prompt_runs: Sequence[set[int]]) -> bool:
    """Whether a text holds half of what a prompt says, in runs of three words.

    >>> prompt_runs = _word_runs(["Why is the sky blue?"])
    >>> _resembles("Tell me why is the sky so blue", prompt_runs), _resembles("Hi!", prompt_runs)
    (True, False)
    """
    (own_runs,) = _word_runs([text])
    return any(runs and len(runs & own_runs) >= _SHARED_RUNS * len(runs) for runs in prompt_runs)


def _with_distributions(
    speaker: Speaker,
    contexts: Sequence[Sequence[int]],
    sequences: Sequence[list[int]],
    top_tokens: int,
) -> list[Conversation]:
    """Conversations with the speaker's distributions behind the context that each begins with."""
    if not sequences:
        return []
    shared_lengths = [
        _shared_beginning(context, tokens)
        for context, tokens in zip(contexts, sequences, strict=True)
    ]
    # Only the largest probabilities are stored and the rest as one sum: all of a vocabulary's
    # would be a hundred kilobytes and more per token.
    parts = top_distributions(
        speaker.model,
        [tokens[:first] for tokens, first in zip(sequences, shared_lengths, strict=True)],
        [tokens[first:] for tokens, first in zip(sequences, shared_lengths, strict=True)],
        top_tokens,
    )
    return [
        Conversation(tokens, first, TeacherDistributions(top.long(), logs, rest))
        for tokens, first, top, logs, rest in zip(sequences, shared_lengths, *parts, strict=True)
    ]


def _shared_beginning(context: Sequence[int], tokens: Sequence[int]) -> int:
    """How many tokens of a context stand at the beginning of a conversation, 1 at least: the last
    of an open template may have become another.

    >>> _shared_beginning([1, 2, 3], [1, 2, 9, 9])
    2
    """
    pairs = zip(context, tokens, strict=False)
    return max(1, sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)))
