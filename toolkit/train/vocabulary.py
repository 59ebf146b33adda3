"""New tokens for a domain: byte-pair encoding, trained on from where a tokenizer's merges end.

Merges are only ever added behind the old ones, so a text is first cut as before and then pieces are
joined: no text is read otherwise, and every new token stands for a known row of old ones.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
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
    rows = [list(word) for word in words]
    counts = list(words.values())
    totals: Counter[Pair] = Counter()
    places: defaultdict[Pair, set[int]] = defaultdict(set)
    for number, row in enumerate(rows):
        for pair in pairwise(row):
            totals[pair] += counts[number]
            places[pair].add(number)
    queue = [(-total, pair) for pair, total in totals.items()]
    heapq.heapify(queue)
    taken, merges, saved = set(known), list[Pair](), list[int]()
    while queue and len(merges) < num_tokens:
        minus, pair = heapq.heappop(queue)
        if totals[pair] != -minus:  # an old entry; the pair was put in again with its new total
            if totals[pair] >= min_count:
                heapq.heappush(queue, (-totals[pair], pair))
            continue
        if -minus < min_count:
            break
        joined = pair[0] + pair[1]
        if joined in taken or _BYTE.fullmatch(pair[0]) or _BYTE.fullmatch(pair[1]):
            continue
        taken.add(joined)
        merges.append(pair)
        changed: set[Pair] = set()
        gain = 0
        for number in sorted(places.pop(pair)):
            before, after = rows[number], join(rows[number], pair)
            if len(before) == len(after):
                continue
            gain += counts[number] * (len(before) - len(after))
            for old in pairwise(before):
                totals[old] -= counts[number]
            for new in pairwise(after):
                totals[new] += counts[number]
                places[new].add(number)
                changed.add(new)
            rows[number] = after
        saved.append(gain)
        for new in sorted(changed):
            heapq.heappush(queue, (-totals[new], new))
    return NewTokens(merges, saved)


def join(pieces: Sequence[str], pair: Pair) -> list[str]:
    """Every occurrence of a pair joined, from the left.

    >>> join(["a", "a", "a", "b"], ("a", "a"))
    ['aa', 'a', 'b']
    """
    joined: list[str] = []
    place = 0
    while place < len(pieces):
        if tuple(pieces[place : place + 2]) == pair:
            joined.append(pieces[place] + pieces[place + 1])
            place += 2
        else:
            joined.append(pieces[place])
            place += 1
    return joined


def expansions(merges: Sequence[Pair]) -> dict[str, list[str]]:
    """Each new token as the old ones that it stands for.

    >>> expansions([("ven", "ue"), ("re", "venue")])["revenue"]
    ['re', 'ven', 'ue']
    """
    made: dict[str, list[str]] = {}
    for left, right in merges:
        made[left + right] = [*made.get(left, [left]), *made.get(right, [right])]
    return made
