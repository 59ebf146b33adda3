"""What follows for a merge from its parents' licenses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from toolkit.errors import PublishError
from toolkit.publish.license_texts import find_agreements
from toolkit.publish.licenses import LICENSES, Parent, find_license, merged_license, name_fits

NONE: dict[str, tuple[Path | None, Path | None]] = {
    "general": (None, None),
    "specialist": (None, None),
}


def parents(general: str | None, specialist: str | None) -> list[Parent]:
    return [
        Parent("general", "org/a", None, general, True),
        Parent("specialist", "org/b", None, specialist, False, trained_from="general"),
    ]


@pytest.mark.parametrize(
    ("general", "specialist", "merged"),
    [
        ("apache-2.0", "apache-2.0", "apache-2.0"),
        ("mit", "Apache-2.0", "apache-2.0"),
        ("apache-2.0", "llama3", "llama3"),
        ("llama3.1", "llama3.1", "llama3.1"),
        ("cc-by-nc-4.0", "mit", "cc-by-nc-4.0"),
        ("gpl-3.0", "cc0-1.0", "gpl-3.0"),
    ],
)
def test_what_a_merge_is_under(general: str, specialist: str, merged: str):
    merged_terms, faults = merged_license(parents(general, specialist))
    assert faults == []
    assert merged_terms is not None
    assert merged_terms.id == merged


@pytest.mark.parametrize(
    ("general", "specialist", "words"),
    [
        (None, "mit", "org/a has no terms given in the recipe"),
        ("my terms", "mit", "org/a has terms 'my terms' that are not in the table"),
        ("gpl", "mit", "'gpl'"),  # 2 or 3 are not the same
        ("llama3", "llama3.1", "llama3 and llama3.1 cannot both hold"),
        ("gemma", "llama3", "cannot both hold"),
        ("cc-by-nc-nd-4.0", "mit", "forbids changed versions"),
    ],
)
def test_what_stops_publishing(general: str | None, specialist: str, words: str):
    merged_terms, faults = merged_license(parents(general, specialist))
    assert merged_terms is None
    assert words in faults[0]


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("org/Llama-3-SEC", True),
        ("org/llama3_sec", True),
        ("org/Llama 3 x", True),
        ("org/Llama-2-x", False),
        ("llama-3/x", False),
        ("org/my-Llama-3", False),
    ],
)
def test_how_a_name_begins(name: str, fits: bool):
    assert name_fits(name, LICENSES["llama3"]) is fits
    assert name_fits(name, LICENSES["mit"])


def test_notices_are_those_of_the_agreements():
    # Llama 3: facts.md; the holder's name differs between the versions.
    assert LICENSES["llama3"].notice == (
        "Meta Llama 3 is licensed under the Meta Llama 3 Community License, "
        "Copyright © Meta Platforms, Inc. All Rights Reserved."
    )
    assert LICENSES["llama3.1"].notice.startswith("Llama 3.1 is licensed under the Llama 3.1")
    assert LICENSES["llama3"].built_with == "Built with Meta Llama 3"
    assert LICENSES["llama3.3"].built_with == "Built with Llama"
    assert find_license("CC0") is LICENSES["cc0-1.0"]


def test_apaches_text_is_at_hand_and_mits_is_not(tmp_path: Path):
    folders = {"general": tmp_path, "specialist": tmp_path / "no"}
    found = find_agreements(parents("apache-2.0", "apache-2.0"), folders, NONE)
    assert list(found.files) == ["LICENSE"]
    assert found.licenses == {"general", "specialist"}
    assert find_agreements(parents("mit", "mit"), folders, NONE).licenses == set()
    (tmp_path / "LICENSE.txt").write_text("MIT License, Copyright Jane")
    found = find_agreements(parents("mit", "mit"), folders, NONE)
    assert found.files == {"LICENSE.txt": b"MIT License, Copyright Jane"}
    assert found.licenses == {"general", "specialist"}


@pytest.mark.parametrize(
    ("terms", "is_shared"),
    [("mit", False), ("bsd-3-clause", False), ("Llama3", True), ("gemma", True), ("gpl-3.0", True)],
)
def test_a_text_that_names_its_holder_is_no_one_else_s(tmp_path: Path, terms: str, is_shared: bool):
    general, specialist = parents(terms.lower(), terms)
    other = replace(specialist, trained_from=None)
    (tmp_path / "LICENSE").write_text("Copyright (c) Jane")
    folders = {"general": tmp_path, "specialist": tmp_path / "no"}
    assert find_agreements([general, specialist], folders, NONE).licenses == {*folders}
    found = find_agreements([general, other], folders, NONE).licenses
    assert found == ({*folders} if is_shared else {"general"})
    # The other way round too: the general model has no right to the specialist's.
    turned = {"general": tmp_path / "no", "specialist": tmp_path}
    found = find_agreements([general, other], turned, NONE).licenses
    assert found == ({*folders} if is_shared else {"specialist"})


def test_a_notice_without_a_last_line_end(tmp_path: Path):
    (tmp_path / "NOTICE").write_text("by Jane")
    found = find_agreements(parents("llama3", "mit"), {"general": tmp_path}, NONE)
    assert found.files["NOTICE"].startswith(b"by Jane\nMeta Llama 3 is licensed")


def test_two_parents_with_texts_of_their_own(tmp_path: Path):
    folders = {role: tmp_path / role for role in ("general", "specialist")}
    for role, folder in folders.items():
        folder.mkdir()
        (folder / "LICENSE").write_text(f"terms of {role}")
    (folders["general"] / "NOTICE").write_text("by Jane\n")
    found = find_agreements(parents("llama3", "mit"), folders, NONE)
    assert found.files["LICENSE"] == b"terms of general"
    assert found.files["LICENSE.specialist"] == b"terms of specialist"
    assert found.files["NOTICE"].startswith(b"by Jane\nMeta Llama 3 is licensed")


def test_a_named_file_that_is_not_there(tmp_path: Path):
    given = {**NONE, "general": (tmp_path / "no.txt", None)}
    with pytest.raises(PublishError, match=r"publish.general.license_file: .* cannot be read"):
        find_agreements(parents("mit", "mit"), {}, given)
