"""New tokens for a domain: byte-pair encoding, trained on from where a tokenizer's merges end.

Merges are only ever added behind the old ones, so a text is first cut as before and then pieces are
joined: no text is read otherwise, and every new token stands for a known row of old ones.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

Pair = tuple[str, str]
_BYTE = re.compile("<0x[0-9A-F]{2}>")
"""A byte that has no token of its own; decoders know it only when it stands alone."""


@dataclass(frozen=True)
class NewTokens:
    """What a vocabulary gains.

    Attributes:
        merges: in their order; each joins two pieces into a token that did not exist.
        saved: tokens that each saves in the text they were chosen on, after those before it.
    """

    merges: list[Pair]
    saved: list[int]

    @property
    def tokens(self) -> list[str]:
        """The new tokens, in the order of their merges."""
        return [left + right for left, right in self.merges]


def choose_merges(
    words: Mapping[tuple[str, ...], int],
    known: set[str],
    num_tokens: int,
    min_count: int,
) -> NewTokens:
    """Choose new tokens by what they save: always the pair of pieces that is most frequent now.

    Args:
        words: how often each word occurs, as pieces of the old vocabulary.
        known: texts of all old tokens, which no merge may make again.
        num_tokens: how many to choose at most.
        min_count: a pair must occur as often.

    Reference:
        Gage 1994; Sennrich et al. 2016, https://arxiv.org/abs/1508.07909.

    >>> words = {("re", "ven", "ue"): 5, ("ven", "ue"): 2, ("re", "x"): 3}
    >>> chosen = choose_merges(words, set(), num_tokens=2, min_count=2)
    >>> chosen.tokens, chosen.saved
    (['venue', 'revenue'], [7, 5])
    """
    pieces_of_words = [list(word) for word in words]
    word_counts = list(words.values())
    pair_totals: Counter[Pair] = Counter()
    words_with_pair: defaultdict[Pair, set[int]] = defaultdict(set)
    for word_number, row in enumerate(pieces_of_words):
        for pair in pairs_to_join(row):
            pair_totals[pair] += word_counts[word_number]
            words_with_pair[pair].add(word_number)
    # The most frequent pair first, and of equal ones the first by its text: alike on every machine.
    # A heap cannot change what is in it, so entries may be older than the totals.
    pair_queue = [(-total, pair) for pair, total in pair_totals.items()]
    heapq.heapify(pair_queue)
    known_tokens, merges, saved = set(known), list[Pair](), list[int]()
    while pair_queue and len(merges) < num_tokens:
        negative_total, pair = heapq.heappop(pair_queue)
        # An old entry: the pair was put in again with its new total, or is now.
        if pair_totals[pair] != -negative_total:
            if pair_totals[pair] >= min_count:
                heapq.heappush(pair_queue, (-pair_totals[pair], pair))
            continue
        if -negative_total < min_count:
            break
        new_token = pair[0] + pair[1]
        # Bytes by themselves stay single: a token with half a sign in it could not be written out.
        if new_token in known_tokens or _BYTE.fullmatch(pair[0]) or _BYTE.fullmatch(pair[1]):
            continue
        # Only words with the pair change, and with them the totals of the pairs around it.
        known_tokens.add(new_token)
        merges.append(pair)
        changed_pairs: set[Pair] = set()
        saved_here = 0
        for word_number in sorted(words_with_pair.pop(pair)):
            pieces_before = pieces_of_words[word_number]
            pieces_after = join(pieces_before, pair)
            # Words stay listed under pairs that other merges have taken out of them.
            if len(pieces_before) == len(pieces_after):
                continue
            saved_here += word_counts[word_number] * (len(pieces_before) - len(pieces_after))
            for old_pair in pairs_to_join(pieces_before):
                pair_totals[old_pair] -= word_counts[word_number]
            for new_pair in pairs_to_join(pieces_after):
                pair_totals[new_pair] += word_counts[word_number]
                words_with_pair[new_pair].add(word_number)
                changed_pairs.add(new_pair)
            pieces_of_words[word_number] = pieces_after
        saved.append(saved_here)
        for new_pair in sorted(changed_pairs):
            heapq.heappush(pair_queue, (-pair_totals[new_pair], new_pair))
    return NewTokens(merges, saved)


def pairs_to_join(pieces: Sequence[str]) -> Iterator[Pair]:
    """Pairs of neighbors, each as often as `join` would join it: in a run of equal pieces every
    second one.

    >>> list(pairs_to_join(["a", "a", "a", "b"]))
    [('a', 'a'), ('a', 'b')]
    """
    counted: Pair | None = None
    for pair in pairwise(pieces):
        # Only a pair of equal pieces can follow itself, and then shares one with the pair before.
        counted = None if pair == counted else pair
        if counted is not None:
            yield pair


def join(pieces: Sequence[str], pair: Pair) -> list[str]:
    """Every occurrence of a pair joined, from the left.

    >>> join(["a", "a", "a", "b"], ("a", "a"))
    ['aa', 'a', 'b']
    """
    joined_pieces: list[str] = []
    place = 0
    while place < len(pieces):
        if tuple(pieces[place : place + 2]) == pair:
            joined_pieces.append(pieces[place] + pieces[place + 1])
            place += 2
        else:
            joined_pieces.append(pieces[place])
            place += 1
    return joined_pieces


def expansions(merges: Sequence[Pair]) -> dict[str, list[str]]:
    """Each new token as the old ones that it stands for.

    >>> expansions([("ven", "ue"), ("re", "venue")])["revenue"]
    ['re', 'ven', 'ue']
    """
    pieces_by_token: dict[str, list[str]] = {}
    for left, right in merges:
        pieces_by_token[left + right] = [
            *pieces_by_token.get(left, [left]),
            *pieces_by_token.get(right, [right]),
        ]
    return pieces_by_token
