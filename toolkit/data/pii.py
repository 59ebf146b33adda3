"""Personal data that has a form: found by pattern, checked where it carries a check digit."""

from __future__ import annotations

import ipaddress
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
        is_real = _CHECKS.get(kind)

        def replace(
            match: re.Match[str], kind: str = kind, is_real: Callable[[str], bool] | None = is_real
        ) -> str:
            if is_real is not None and not is_real(match.group()):
                return match.group()
            counts[f"pii: {kind}"] += 1
            return f"<{kind.upper()}>"

        text = _PATTERNS[kind].sub(replace, text)
    return text
