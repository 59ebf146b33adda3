"""Personal data that has a form: found by pattern, checked where it carries a check digit."""

from __future__ import annotations

import ipaddress
import itertools
import re
from collections import Counter
from collections.abc import Callable, Sequence

# Repetitions are bounded: without bounds, long runs of letters or digits take a time that grows
# with their square.
_PATTERNS: dict[str, re.Pattern[str]] = {
    "email": re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.)+[A-Za-z]{2,24}(?![\w@])"),
    "iban": re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?\b"),
    "credit_card": re.compile(r"(?<![\d.,-])\d(?:[ -]?\d){12,18}(?![\d-])"),
    # Areas 000, 666 and from 900 on, group 00 and serial 0000 are never given out.
    "us_ssn": re.compile(r"(?<![\d-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])"),
    "ip_address": re.compile(
        r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4})(?![\w:]|\.\d)"
    ),
    "phone": re.compile(
        r"(?<![\w.,-])(?:\+\d{1,3}[ .-]?)?(?:\(\d{2,4}\)[ .-]?|\d{3}[ .-])"
        r"\d{3,4}[ .-]\d{3,4}(?![\w-])"
        r"|(?<![\w.,-])\+\d{1,3}(?:[ .-]?\d{2,4}){2,5}(?![\w-])"
    ),
}


# A match of the pattern above as a whole, however it is grouped; within one, only what is grouped
# as cards are: a tenth of all rows of digits pass their check by chance.
_CARD_GROUPS = re.compile(
    r"(?<![\d.,-])(?:\d{13,19}|\d{4}(?:[ -]\d{4}){2}(?:[ -]\d{4})?[ -]\d{1,4}"
    r"|\d{4}[ -]\d{6}[ -]\d{4,5})(?!\d)"
)


def _luhn(text: str) -> bool:
    reversed_digits = [int(sign) for sign in text if sign.isdigit()][::-1]
    luhn_sum = sum(
        digit if place % 2 == 0 else digit * 2 - 9 * (digit > 4)
        for place, digit in enumerate(reversed_digits)
    )
    # A row of zeros passes Luhn's test and is no card.
    return luhn_sum % 10 == 0 and len(set(reversed_digits)) > 1


def _iban(text: str) -> bool:
    plain_text = text.replace(" ", "")
    turned_text = plain_text[4:] + plain_text[:4]
    return (
        15 <= len(plain_text) <= 34
        and int("".join(str(int(sign, 36)) for sign in turned_text)) % 97 == 1
    )


def _ip(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified)


_CHECKS: dict[str, Callable[[str], bool]] = {"credit_card": _luhn, "iban": _iban, "ip_address": _ip}


def _replace_real(
    text: str,
    pattern: re.Pattern[str],
    is_real: Callable[[str], bool],
    placeholder: str,
    tries_parts: bool = True,
) -> tuple[str, int]:
    """Replace what matches a pattern and is real, and say how often.

    A match is the longest there is, so a word or number behind may be taken into it: where it is
    not real, each of its ends at a word's end is tried, then what begins within it.
    """
    pieces: list[str] = []
    kept_from = place = 0
    while match := pattern.search(text, place):
        start = match.start()
        shorter_ends = (
            end
            for end in range(match.end() - 1, start if tries_parts else match.end(), -1)
            if not text[end - 1 : end + 1].isalnum() and pattern.fullmatch(text, start, end)
        )
        ends = itertools.chain([match.end()], shorter_ends)
        end = next((end for end in ends if is_real(text[start:end])), None)
        if end is None:
            place = start + 1 if tries_parts else match.end()
            continue
        pieces += [text[kept_from:start], placeholder]
        kept_from = place = end
    return "".join([*pieces, text[kept_from:]]), len(pieces) // 2


def scrub(text: str, kinds: Sequence[str], counts: Counter[str]) -> str:
    """Replace personal data by placeholders.

    Args:
        text: to scrub.
        kinds: of `email`, `phone`, `iban`, `us_ssn`, `credit_card`, `ip_address`.
        counts: gains `pii: <kind>` for each replacement.

    >>> scrub("Mail jo@x.org or call (555) 123-4567.", ["email", "phone"], Counter())
    'Mail <EMAIL> or call <PHONE>.'
    """
    # In the patterns' order and not the caller's: accounts and cards hold what looks like a phone
    # number.
    for kind in [name for name in _PATTERNS if name in kinds]:
        placeholder, is_real = f"<{kind.upper()}>", _CHECKS.get(kind)
        if is_real is None:
            text, num_replaced = _PATTERNS[kind].subn(placeholder, text)
        else:
            tries_parts = kind != "credit_card"
            text, num_replaced = _replace_real(
                text, _PATTERNS[kind], is_real, placeholder, tries_parts=tries_parts
            )
        if kind == "credit_card":
            text, num_grouped = _replace_real(text, _CARD_GROUPS, _luhn, placeholder)
            num_replaced += num_grouped
        if num_replaced:
            counts[f"pii: {kind}"] += num_replaced
    return text
