"""Licenses of models: what follows for a merge from its parents', and what must be done.

This is a table of what the licenses ask of someone who passes a changed model on, kept small so
that it can be checked; it is no legal advice. Where a rule is marked "check", it was written from
memory and not compared with the agreement's text. What the table does not know stops publishing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Family = Literal["permissive", "share-alike", "agreement", "non-commercial", "no-derivatives"]
Text = Literal["standard", "own"]
"""`standard`: one text for everyone, such as an agreement of one maker. `own`: it carries the name
of whoever holds the rights, so theirs is needed."""


@dataclass(frozen=True)
class License:
    """One license.

    Attributes:
        id: as the hub writes it.
        title: for people.
        family: what it does to works made from the model.
        link: where its text stands.
        text: whose copy of the text has to be passed on.
        name_begins: how the name of a model made from it must begin.
        built_with: what must be shown.
        notice: what a file NOTICE must say.
    """

    id: str
    title: str
    family: Family
    link: str
    text: Text = "standard"
    name_begins: str = ""
    built_with: str = ""
    notice: str = ""


def _llama(number: str, name_begins: str, built_with: str, holder: str, link: str) -> License:
    title = f"{holder} {number} Community License"
    notice = f"{holder} {number} is licensed under the {title}, Copyright © Meta Platforms, Inc."
    return License(
        id=f"llama{number}",
        title=title,
        family="agreement",
        link=link,
        name_begins=name_begins,
        built_with=built_with,
        notice=f"{notice} All Rights Reserved.",
    )


_CC = "https://creativecommons.org/licenses"
_META = "https://www.llama.com"
_ALL = (
    License(
        "apache-2.0",
        "Apache License 2.0",
        "permissive",
        "https://www.apache.org/licenses/LICENSE-2.0",
    ),
    License("mit", "MIT License", "permissive", "https://opensource.org/license/mit", text="own"),
    License(
        "bsd-2-clause",
        "BSD 2-Clause License",
        "permissive",
        "https://opensource.org/license/bsd-2-clause",
        text="own",
    ),
    License(
        "bsd-3-clause",
        "BSD 3-Clause License",
        "permissive",
        "https://opensource.org/license/bsd-3-clause",
        text="own",
    ),
    License(
        "cc0-1.0", "CC0 1.0", "permissive", "https://creativecommons.org/publicdomain/zero/1.0"
    ),
    License("cc-by-4.0", "CC BY 4.0", "permissive", f"{_CC}/by/4.0"),
    License("cc-by-sa-4.0", "CC BY-SA 4.0", "share-alike", f"{_CC}/by-sa/4.0"),
    License("gpl-3.0", "GNU GPL 3", "share-alike", "https://www.gnu.org/licenses/gpl-3.0"),
    License("agpl-3.0", "GNU AGPL 3", "share-alike", "https://www.gnu.org/licenses/agpl-3.0"),
    License("cc-by-nc-4.0", "CC BY-NC 4.0", "non-commercial", f"{_CC}/by-nc/4.0"),
    License("cc-by-nc-sa-4.0", "CC BY-NC-SA 4.0", "share-alike", f"{_CC}/by-nc-sa/4.0"),
    License("cc-by-nd-4.0", "CC BY-ND 4.0", "no-derivatives", f"{_CC}/by-nd/4.0"),
    License("cc-by-nc-nd-4.0", "CC BY-NC-ND 4.0", "no-derivatives", f"{_CC}/by-nc-nd/4.0"),
    # Llama 3: facts.md, V/M. The names and notices of 2, 3.2, 3.3 and 4: check.
    _llama("2", "", "", "Llama", f"{_META}/llama2/license"),
    _llama("3", "Llama 3", "Built with Meta Llama 3", "Meta Llama", f"{_META}/llama3/license"),
    _llama("3.1", "Llama", "Built with Llama", "Llama", f"{_META}/llama3_1/license"),
    _llama("3.2", "Llama", "Built with Llama", "Llama", f"{_META}/llama3_2/license"),
    _llama("3.3", "Llama", "Built with Llama", "Llama", f"{_META}/llama3_3/license"),
    _llama("4", "Llama", "Built with Llama", "Llama", f"{_META}/llama4/license"),
    # Gemma's terms: check.
    License(
        "gemma",
        "Gemma Terms of Use",
        "agreement",
        "https://ai.google.dev/gemma/terms",
        notice="Gemma is provided under and subject to the Gemma Terms of Use found at "
        "ai.google.dev/gemma/terms",
    ),
)
LICENSES: Mapping[str, License] = {one.id: one for one in _ALL}
_OTHER_NAMES = {"apache 2.0": "apache-2.0", "apache2": "apache-2.0", "cc0": "cc0-1.0"}


def license_id(name: str | None) -> str | None:
    """The identifier of a license as the hub writes it; what is not in the table stays as it is.

    >>> license_id("Gemma"), license_id("my-terms"), license_id(None)
    ('gemma', 'my-terms', None)
    """
    known = find_license(name)
    return known.id if known is not None else name


def find_license(name: str | None) -> License | None:
    """The license of this identifier, or None.

    >>> find_license("Apache-2.0").title
    'Apache License 2.0'
    """
    license_key = (name or "").strip().lower()
    return LICENSES.get(_OTHER_NAMES.get(license_key, license_key))


@dataclass(frozen=True)
class Parent:
    """A parent of the merge, as others may know it.

    Attributes:
        role: `general` or `specialist`.
        name: public name.
        revision: of `name`.
        license: identifier of its terms, as the recipe gives it.
        is_published: whether `name` can be found on a hub.
        origin: where its weights were taken from, where that is not `name`.
        trained_from: role of the parent that a recipe trained it from; None of finished models.
    """

    role: str
    name: str
    revision: str | None
    license: str | None
    is_published: bool
    origin: str = ""
    trained_from: str | None = None

    @property
    def recipe_key(self) -> str:
        """Where a recipe says what others may know of it."""
        is_main = self.role in {"general", "specialist"}
        return f"publish.{self.role}" if is_main else f"publish.parents.{self.role}"


def merged_license(parents: Sequence[Parent]) -> tuple[License | None, list[str]]:
    """The terms of a merge, and why it has none where its parents' do not go together.

    Permissive licenses give way to any other one. Of the others there may be only one: whether two
    agreements can both hold of one model is a lawyer's question.

    >>> one = Parent("general", "org/a", None, "apache-2.0", True)
    >>> two = Parent("specialist", "org/b", None, "cc-by-nc-4.0", True)
    >>> merged_license([one, two])[0].id
    'cc-by-nc-4.0'
    """
    faults: list[str] = []
    known_terms: dict[str, License] = {}
    for parent in parents:
        terms = find_license(parent.license)
        if terms is None:
            stated_terms = f"terms {parent.license!r} that are" if parent.license else "no terms"
            what_lacks = "not in the table of licenses" if parent.license else "given in the recipe"
            faults.append(f"{parent.name} has {stated_terms} {what_lacks}")
        elif terms.family == "no-derivatives":
            faults.append(f"{parent.name} is under {terms.id}, which forbids changed versions")
        else:
            known_terms[terms.id] = terms
    strict_terms = [terms for terms in known_terms.values() if terms.family != "permissive"]
    # Versions of one family count as several: Llama 3 and 3.1 are two agreements.
    if len(strict_terms) > 1:
        names = " and ".join(terms.id for terms in strict_terms)
        faults.append(f"the terms {names} cannot both hold of one model as far as is known here")
    if faults:
        return None, faults
    if strict_terms:
        return strict_terms[0], []
    # Of permissive ones the one that asks most: Apache's and MIT's texts are both shipped.
    asking_order = ["apache-2.0", "bsd-3-clause", "bsd-2-clause", "mit", "cc-by-4.0", "cc0-1.0"]
    return min(known_terms.values(), key=lambda terms: asking_order.index(terms.id)), []


def name_fits(repository: str, terms: License) -> bool:
    """Whether the model's name begins as its parent's license asks, whatever joins the words.

    >>> name_fits("org/Llama-3-SEC", LICENSES["llama3"]), name_fits("org/sec", LICENSES["llama3"])
    (True, False)
    """

    def plain(text: str) -> str:
        return re.sub(r"[^a-z0-9]", "", text.lower())

    return plain(repository.rsplit("/", 1)[-1]).startswith(plain(terms.name_begins))


def built_with(parents: Sequence[Parent]) -> list[str]:
    """Lines that must be shown, each once."""
    found = [find_license(parent.license) for parent in parents]
    return list(dict.fromkeys(item.built_with for item in found if item and item.built_with))


def notices(parents: Sequence[Parent]) -> list[str]:
    """Lines of the file NOTICE, each once."""
    parent_licenses = [find_license(parent.license) for parent in parents]
    return list(dict.fromkeys(item.notice for item in parent_licenses if item and item.notice))
