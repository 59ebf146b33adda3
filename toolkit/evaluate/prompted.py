"""Continuations after prompts: each prompt is computed once, whatever follows it.

What all prompts begin with (a task's introduction, examples, a system prompt) is computed once for
all of them; the key-value cache of each prompt then serves all its continuations. A continuation of
one token needs no further computation at all: the prompt's last position predicts it.
Legend: B rows, T tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from toolkit.checkpoint.forward import agrees
from toolkit.checkpoint.probe_documents import most_positions, probe_documents
from toolkit.evaluate.head import can_pad, final_hidden, find_once, picked_and_greedy
from toolkit.evaluate.likelihood import windows

_SHORTEST_PREFIX = 8
"""Shorter common beginnings are not worth a pass of their own."""

_CPU_TOKENS = 512
"""Tokens of one pass on a CPU at most: prompts are short and of many lengths, so larger batches are
padded more, and nothing is gained by them (SmolLM2: 1.80 s for two tasks at 512, 2.19 s at 4,096).
"""

_CACHE_FACTOR = 8
"""A pass over continuations holds at most so many times the batch's tokens in its cache."""


_SHARING: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
"""Whether each model was found to share."""

_PROBE_TOKENS = 320
"""Of a prompt with which sharing is tried, at most; windows of old models are 256."""


@dataclass(frozen=True)
class Prompted:
    """Tokens of a prompt, at least one, and of what may follow it, at least one each."""

    prompt: list[int]
    continuations: list[list[int]]

    def cost(self) -> int:
        """Tokens to be computed."""
        return len(self.prompt) + sum(len(tokens) - 1 for tokens in self.continuations)


class ContinuationScore(NamedTuple):
    """Log likelihood of a continuation in nats, and whether greedy decoding would give it: in this
    order lm-eval's answer to a request."""

    log_likelihood: float
    is_greedy: bool


@torch.inference_mode()
def score_continuations(
    model: Any, items: Sequence[Prompted], batch_tokens: int
) -> list[list[ContinuationScore]]:
    """Log likelihood of every continuation of every prompt.

    Args:
        model: a causal language model.
        items: prompts with their continuations.
        batch_tokens: tokens computed at once.

    Returns:
        For each item the scores of its continuations.
    """
    model.eval()
    batch_tokens = _pass_tokens(model, batch_tokens)
    scores: list[list[ContinuationScore]] = [[] for _ in items]
    longest_tokens = longest_input(model)
    # What fits and may share goes in batches behind one prefix, everything else sequence by
    # sequence.
    shared_items = [n for n, item in enumerate(items) if _fits(item, longest_tokens)]
    if not can_share(model):
        shared_items = []
    prefix = common_prefix([items[n].prompt for n in shared_items])
    start = prefill(model, items[shared_items[0]].prompt[:prefix]) if prefix else None
    for batch in _batches(items, shared_items, prefix, batch_tokens):
        batch_scores = _score_batch(model, [items[n] for n in batch], prefix, start, batch_tokens)
        for number, item_scores in zip(batch, batch_scores, strict=True):
            scores[number] = item_scores
    for number in sorted(set(range(len(items))) - set(shared_items)):
        scores[number] = _score_apart(model, items[number], longest_tokens, batch_tokens)
    return scores


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with, leaving at least one to each; 0 where it is not worth it.

    >>> common_prefix([[1] * 9 + [2], [1] * 9 + [3, 4]])
    9
    >>> common_prefix([[1, 2, 3], [1, 2, 4]])
    0
    """
    if len(prompts) < 2:
        return 0
    low, last_sorted = min(map(list, prompts)), max(map(list, prompts))  # all lie between these two
    shorter_length = min(len(low), len(last_sorted))
    num_same = next((n for n in range(shorter_length) if low[n] != last_sorted[n]), shorter_length)
    # A prompt keeps a token of its own, whose state predicts the first token of what follows.
    num_same = min(num_same, min(map(len, prompts)) - 1)
    return num_same if num_same >= _SHORTEST_PREFIX else 0


def _pass_tokens(model: Any, batch_tokens: int) -> int:
    on_cpu = next(model.parameters()).device.type == "cpu"
    return min(batch_tokens, _CPU_TOKENS) if on_cpu else batch_tokens


def longest_input(model: Any) -> int | None:
    """Tokens that a model can look at together, where its configuration says."""
    return most_positions(model.config)


def _fits(item: Prompted, longest: int | None) -> bool:
    return longest is None or len(item.prompt) + max(map(len, item.continuations)) - 1 <= longest


@torch.no_grad()
def can_share(model: Any) -> bool:
    """Whether prompts may share a cache, and go through the model together: tried once per model,
    as some pass over the positions or masks that this takes."""
    return find_once(_SHARING, model, lambda: _keeps_plain_cache(model) and _shares_rightly(model))


def _shares_rightly(model: Any) -> bool:
    """Compare continuations behind shared prompts with each sequence alone."""
    probe_length = min(_PROBE_TOKENS, (longest_input(model) or _PROBE_TOKENS) - 8)
    text = [int(token) for token in probe_documents(model, probe_length)[0]]
    # One ends where the shared tokens do plus one, the other four later: rows are padded unequally.
    prompts = ([*text[:-8], text[0]], [*text[:-8], *text[2:6]])
    items = [Prompted(prompt, [text[-1:], text[-3:], text[-6:]]) for prompt in prompts]
    prefix_cache = prefill(model, text[:-8])
    shared_scores = _score_batch(model, items, len(text) - 8, prefix_cache, _CPU_TOKENS)
    scores_apart = [_score_apart(model, item, None, 1) for item in items]
    return all(
        agrees(model, _log_likelihoods(behind_prefix), _log_likelihoods(alone))
        for behind_prefix, alone in zip(shared_scores, scores_apart, strict=True)
    )


def _log_likelihoods(scores: Sequence[ContinuationScore]) -> Tensor:
    return torch.tensor([score.log_likelihood for score in scores])


def _keeps_plain_cache(model: Any) -> bool:
    """Whether a model's cache is plain: windows and recurrent states count padding as text."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    # Without them, tokens behind a padded row would be numbered as if the padding were text.
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return False
    try:
        new_cache = DynamicCache(config=model.config)
    except (TypeError, ValueError, KeyError):
        return False
    # The very type, as a layer with a sliding window is a subclass of it.
    return all(type(layer) is DynamicLayer for layer in new_cache.layers)


def prefill(model: Any, tokens: Sequence[int]) -> Any:
    """The key-value cache of tokens that everything begins with."""
    from transformers import DynamicCache

    prefix_cache = DynamicCache(config=model.config)
    final_hidden(model, torch.tensor([list(tokens)]), past_key_values=prefix_cache, use_cache=True)
    return prefix_cache


def _batches(
    items: Sequence[Prompted], chosen: Sequence[int], prefix: int, batch_tokens: int
) -> list[list[int]]:
    """Longest first, so that like lengths share a batch."""
    order = sorted(chosen, key=lambda n: (-len(items[n].prompt), n))
    return [
        order[start:stop]
        for start, stop in cut_batches([len(items[n].prompt) - prefix for n in order], batch_tokens)
    ]


def cut_batches(lengths: Sequence[int], batch_tokens: int) -> list[tuple[int, int]]:
    """Cut falling lengths into batches so that padding and passes together cost least.

    A pass itself takes about as long as an eighth of the tokens that fill it (SmolLM2 on a CPU: 60
    of 512), so a batch may well end before it is full.

    Args:
        lengths: none longer than the one before.
        batch_tokens: of a batch at most, padding counted; a longer item stands alone.

    >>> cut_batches([100, 100, 10, 10], 400)  # 240 tokens and two passes, against 400 and one
    [(0, 2), (2, 4)]
    >>> cut_batches([100, 90, 80], 400)
    [(0, 3)]
    """
    # Dynamic programming over the ends of batches: the cheapest cut of the first `stop` items.
    least_costs, best_starts = [0.0], [0]
    for stop in range(1, len(lengths) + 1):
        best_cut = (float("inf"), 0)
        for start in range(stop - 1, -1, -1):
            padded_tokens = lengths[start] * (stop - start)
            if padded_tokens > batch_tokens and stop - start > 1:
                break
            best_cut = min(best_cut, (least_costs[start] + padded_tokens + batch_tokens / 8, start))
        least_costs.append(best_cut[0])
        best_starts.append(best_cut[1])
    batch_cuts, stop = [], len(lengths)
    while stop:
        batch_cuts.append((best_starts[stop], stop))
        stop = best_starts[stop]
    return batch_cuts[::-1]


def _score_batch(
    model: Any, batch: Sequence[Prompted], prefix: int, start: Any, batch_tokens: int
) -> list[list[ContinuationScore]]:
    from transformers import DynamicCache

    device = next(model.parameters()).device
    prompt_rests = [item.prompt[prefix:] for item in batch]
    lengths = [len(rest) for rest in prompt_rests]
    # Continuations of one token are done by the end state alone; only longer ones need the cache.
    long_ones = [
        (row, continuation_number)
        for row, item in enumerate(batch)
        for continuation_number, continuation in enumerate(item.continuations)
        if len(continuation) > 1
    ]
    # A pass appends to the cache that it is given, and the prefix's has a single row: this batch
    # gets one of its own, of as many rows.
    if start is not None:
        cache = rows_of(model, start, torch.zeros(len(batch), dtype=torch.long, device=device))
    else:
        cache = DynamicCache(config=model.config) if long_ones else None
    token_places = torch.arange(max(lengths), device=device)[None] + prefix
    hidden_states = final_hidden(
        model,
        padded(prompt_rests),
        position_ids=token_places.expand(len(batch), -1),
        past_key_values=cache,
        use_cache=cache is not None,
    )
    # Padded at the right, rows end at places of their own.
    end_states = hidden_states[torch.arange(len(batch)), torch.tensor(lengths) - 1]
    scores = _score_first_tokens(model, end_states, batch)
    # Longest first: the first of each batch is as wide as the batch.
    long_ones.sort(key=lambda pair: -len(batch[pair[0]].continuations[pair[1]]))
    cache_width = prefix + max(lengths)
    # Then whatever is longer than one token, behind the caches of the prompts.
    while long_ones:
        most = len(batch[long_ones[0][0]].continuations[long_ones[0][1]]) - 1
        # Bounded by tokens computed and by tokens held: every row carries the whole cache of its
        # prompt.
        batch_room = min(batch_tokens // most, _CACHE_FACTOR * batch_tokens // (cache_width + most))
        now, long_ones = long_ones[: max(1, batch_room)], long_ones[max(1, batch_room) :]
        tails = [batch[row].continuations[continuation_number] for row, continuation_number in now]
        tail_scores = _score_tails(model, tails, [row for row, _ in now], lengths, prefix, cache)
        for (row, continuation_number), tail_score in zip(now, tail_scores, strict=True):
            first_score = scores[row][continuation_number]
            scores[row][continuation_number] = ContinuationScore(
                first_score.log_likelihood + tail_score.log_likelihood,
                first_score.is_greedy and tail_score.is_greedy,
            )
    return scores


def _score_first_tokens(
    model: Any, ends: Tensor, batch: Sequence[Prompted]
) -> list[list[ContinuationScore]]:
    """The first token of every continuation, which the end of its prompt predicts, `[B, D]`."""
    firsts = [(row, tokens[0]) for row, item in enumerate(batch) for tokens in item.continuations]
    first_logs, greedy = picked_and_greedy(
        model, ends, [token for _, token in firsts], [row for row, _ in firsts]
    )
    scores: list[list[ContinuationScore]] = [[] for _ in batch]
    for (row, _), log, is_greedy in zip(firsts, first_logs.tolist(), greedy.tolist(), strict=True):
        scores[row].append(ContinuationScore(log, is_greedy))
    return scores


def _score_tails(
    model: Any,
    tails: Sequence[Sequence[int]],
    rows: Sequence[int],
    lengths: Sequence[int],
    prefix: int,
    cache: Any,
) -> list[ContinuationScore]:
    """All but the first tokens of continuations, after their prompts' cache."""
    device = next(model.parameters()).device
    chosen_rows = torch.tensor(rows, device=device)
    tail_cache = rows_of(model, cache, chosen_rows)
    prompt_ends = torch.tensor(lengths, device=device)[chosen_rows] + prefix
    width = prefix + max(lengths)
    tail_inputs = padded([tail[:-1] for tail in tails])
    num_steps = tail_inputs.shape[1]
    # A row's own prompt ends before the width of the batch: what stands between is padding.
    mask = torch.ones(len(tails), width + num_steps, dtype=torch.long, device=device)
    mask[:, :width] = (torch.arange(width, device=device)[None] < prompt_ends[:, None]).long()
    hidden_states = final_hidden(
        model,
        tail_inputs,
        attention_mask=mask,
        # Positions go on where the row's own prompt ends, not where the widest does.
        position_ids=prompt_ends[:, None] + torch.arange(num_steps, device=device)[None],
        past_key_values=tail_cache,
        use_cache=True,
    )
    tail_states = torch.cat([hidden_states[n, : len(tail) - 1] for n, tail in enumerate(tails)])
    picked_parts = picked_and_greedy(model, tail_states, [t for tail in tails for t in tail[1:]])
    tail_counts = [len(tail) - 1 for tail in tails]
    score_parts = zip(*(torch.split(values, tail_counts) for values in picked_parts), strict=True)
    return [_sum_tokens(*part) for part in score_parts]


def _sum_tokens(log_probabilities: Tensor, is_greedy: Tensor) -> ContinuationScore:
    return ContinuationScore(float(log_probabilities.double().sum()), bool(is_greedy.all()))


def rows_of(model: Any, cache: Any, rows: Tensor) -> Any:
    """A cache of its own that holds these rows of another, which stays as it is."""
    from transformers import DynamicCache

    row_cache = DynamicCache(config=model.config)
    for layer_index, layer in enumerate(cache.layers):
        row_cache.update(layer.keys[rows], layer.values[rows], layer_index)
    return row_cache


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """`[B, T]`, zeros at the right."""
    padded_inputs = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for row_index, row in enumerate(rows):
        padded_inputs[row_index, : len(row)] = torch.tensor(list(row))
    return padded_inputs


def _score_apart(
    model: Any, item: Prompted, longest: int | None, batch_tokens: int
) -> list[ContinuationScore]:
    """Without a shared cache: every continuation with its whole prompt, cut at the left to fit."""
    if longest is not None and max(map(len, item.continuations)) > longest:
        return [
            _score_windows(model, item.prompt[-1], tokens, longest)
            if len(tokens) > longest
            else _score_apart(model, Prompted(item.prompt, [tokens]), longest, batch_tokens)[0]
            for tokens in item.continuations
        ]
    whole_texts = [[*item.prompt, *tokens] for tokens in item.continuations]
    batch_tokens = batch_tokens if can_pad(model) else 1
    if longest is not None:
        # One more than the model reads: the last token is only predicted.
        whole_texts = [tokens[-(longest + 1) :] for tokens in whole_texts]
    batch_room = max(1, batch_tokens // max(map(len, whole_texts)))
    scores: list[ContinuationScore] = []
    for first_text in range(0, len(whole_texts), batch_room):
        text_batch = whole_texts[first_text : first_text + batch_room]
        hidden_states = final_hidden(model, padded([tokens[:-1] for tokens in text_batch]))
        for row, tokens in enumerate(text_batch):
            num_scored = len(item.continuations[first_text + row])
            states = hidden_states[row, len(tokens) - 1 - num_scored : len(tokens) - 1]
            scores.append(_sum_tokens(*picked_and_greedy(model, states, tokens[-num_scored:])))
    return scores


def _score_windows(
    model: Any, before: int, continuation: Sequence[int], longest: int
) -> ContinuationScore:
    """A continuation longer than what the model reads, window by window behind the prompt's last
    token, so that all of it is scored as its size says."""
    window_scores = []
    for inputs, targets in windows([before, *continuation], longest, 1):
        states = final_hidden(model, torch.tensor([inputs]))[0, -len(targets) :]
        window_scores.append(_sum_tokens(*picked_and_greedy(model, states, targets)))
    return ContinuationScore(
        sum(score.log_likelihood for score in window_scores),
        all(score.is_greedy for score in window_scores),
    )


def answer_states(
    model: Any,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    batch_tokens: int,
) -> Iterator[tuple[list[int], Tensor]]:
    """What the output head takes where it predicts the tokens of answers, batch by batch.

    Args:
        model: a causal language model.
        prompts: tokens of each prompt; what all begin with is computed once.
        answers: tokens of the one answer to each.
        batch_tokens: tokens computed at once.

    Yields:
        Indices of some answers, and their states one behind the other, `[T, D]`.
    """
    token_rows = [[*prompt, *answer][:-1] for prompt, answer in zip(prompts, answers, strict=True)]
    batch_tokens = _pass_tokens(model, batch_tokens)
    is_shared = can_share(model)
    prefix_length = common_prefix(prompts) if is_shared else 0
    # An architecture that reads padding gets each row by itself.
    batch_tokens = batch_tokens if is_shared or can_pad(model) else 1
    prefix_cache = prefill(model, token_rows[0][:prefix_length]) if prefix_length else None
    device = next(model.parameters()).device
    # Longest first, for even batches, and so that what does not fit into memory fails at once.
    falling_order = sorted(range(len(token_rows)), key=lambda n: (-len(token_rows[n]), n))
    while falling_order:
        row_length = len(token_rows[falling_order[0]]) - prefix_length
        batch_room = max(1, batch_tokens // row_length)
        batch, falling_order = falling_order[:batch_room], falling_order[batch_room:]
        cache_arguments: dict[str, object] = {}
        if prefix_cache is not None:
            first_rows = torch.zeros(len(batch), dtype=torch.long, device=device)
            token_places = torch.arange(row_length, device=device)[None] + prefix_length
            cache_arguments = {
                "past_key_values": rows_of(model, prefix_cache, first_rows),
                "use_cache": True,
                "position_ids": token_places.expand(len(batch), -1),
            }
        hidden_states = final_hidden(
            model, padded([token_rows[n][prefix_length:] for n in batch]), **cache_arguments
        )
        row_ends = [len(token_rows[number]) - prefix_length for number in batch]
        answer_rows = [
            hidden_states[row, row_end - len(answers[number]) : row_end]
            for row, (number, row_end) in enumerate(zip(batch, row_ends, strict=True))
        ]
        yield batch, torch.cat(answer_rows)
