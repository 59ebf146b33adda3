"""What must not stand in a published text file, and what only looks like it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from toolkit.publish import privacy
from toolkit.publish.privacy import find_leaks


def found(tmp_path: Path, text: str, name: str = "report.json") -> list[str]:
    (tmp_path / name).write_text(text)
    return list(find_leaks([tmp_path / name]))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("see /home/jane/model", "a local path (/home/jane/model)"),
        ('"/Users/jane/x"', "a local path (/Users/jane/x)"),
        ("C:\\Users\\jane\\x", "a local path (C:\\Users\\jane\\x)"),
        ("file:///srv/x", "a local path (file:///srv/x)"),
        ("/srv/models/x", "a local path (/srv/models/x)"),
        ("at=/nfs/team/x", "a local path (/nfs/team/x)"),
        ("x:/home/alice/data", "a local path (x:/home/alice/data)"),
        ("host:/home/alice/data", "a local path (/home/alice/data)"),
        ("D:/models/x", "a local path (D:/models/x)"),
        ("D:\\reports\\x", "a local path (D:\\reports\\x)"),
        ("see ~/models", "a local path (~/models)"),
        ("see ~alice/models", "a local path (~alice/models)"),
        ("\\\\server\\share", "a local path (\\\\server\\share)"),
        ("token hf_" + "a" * 34, "what looks like a secret (hf_a…)"),
        ("AKIA" + "B" * 16, "what looks like a secret (AKIA…)"),
        ("ghp_" + "c" * 36, "what looks like a secret (ghp_…)"),
        ("-----BEGIN RSA PRIVATE KEY-----", "what looks like a secret (----…)"),
        ("https://me:pass@host/x", "what looks like a secret (http…)"),
        ("write to jane.doe@example.org", "an e-mail address (jane.doe@example.org)"),
    ],
)
def test_what_must_not_leave(tmp_path: Path, text: str, words: str):
    assert found(tmp_path, f"first\n{text}\n", "README.md") == [f"README.md, line 2: {words}"]
    # In JSON backslashes are doubled, and an address may have its slashes escaped.
    for value in (json.dumps(text), json.dumps(text).replace("/", "\\/")):
        assert found(tmp_path, f'{{"a":\n{value}}}') == [f"report.json, line 2: {words}"]


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org/home/page",
        "the path model/home/x",
        "a/data/b",
        "org/model@v1.0",
        "<a href='/home'>",
        "3 /opt 4",
        "/v1/chat/completions",
        "#!/usr/bin/env",
        "about ~5/6 of it",
        r"{{ 'A:\n' + '\n\n' }} \n\nB:\nno",
        r"the regex \\s\w+ and \\d+",
        json.dumps(r"{{ 'Q:\n\nWhat?' }}" + "\n\nA:\n\n"),
        "linear alpha=0.8",
    ],
)
def test_what_only_looks_like_it(tmp_path: Path, text: str):
    assert found(tmp_path, text) == []


def test_this_machines_names_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(privacy.getpass, "getuser", lambda: "janedoe")
    monkeypatch.setattr(privacy.socket, "gethostname", lambda: "gpu-box-7")
    monkeypatch.chdir(tmp_path)
    assert found(tmp_path, "by janedoe") == [
        "report.json, line 1: the name of this machine or its user (janedoe)"
    ]
    assert len(found(tmp_path, "on gpu-box-7.")) == 1
    assert found(tmp_path, "janedoes") == []
    assert f"a path of this machine ({tmp_path})" in found(tmp_path, f"x={tmp_path}/y")[0]
    # In a list of pieces of words names and addresses are chance; paths and secrets are not.
    pieces = '{"janedoe": 5, "a@b.cd": 6}'
    assert found(tmp_path, pieces, "tokenizer.json") == []
    assert len(found(tmp_path, f"{tmp_path}", "tokenizer.json")) == 1


def test_a_folder_at_the_root_of_this_machine(tmp_path: Path):
    root = tmp_path.resolve().parts[1]  # whatever it is called
    assert f"(/{root}/x)" in found(tmp_path, f"/{root}/x")[0]
    assert found(tmp_path, "/no-folder-here/x") == []


def test_ordinary_user_names_are_no_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(privacy.getpass, "getuser", lambda: "root")
    assert found(tmp_path, "the square root") == []


def test_secrets_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_HUB_TOKEN", "correct-horse-battery")
    (line,) = found(tmp_path, "x correct-horse-battery x")
    assert "a secret of this machine's environment" in line
    assert "correct" not in line


def test_agreements_may_give_addresses(tmp_path: Path):
    assert found(tmp_path, "mail legal@example.org", "LICENSE") == []


def test_a_page_is_looked_through_like_any_text(tmp_path: Path):
    assert found(tmp_path, "<p>\n/home/jane/x</p>", "report.html") == [
        "report.html, line 2: a local path (/home/jane/x)"
    ]


def test_what_cannot_be_looked_through(tmp_path: Path):
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe")
    assert "is not UTF-8 text" in next(iter(find_leaks([tmp_path / "x.txt"])))
