"""The stage as a whole: the same for any number of processes, continued after kill -9, stable."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import paragraph
from tests.helpers.corpora import run, section, write_corpus
from toolkit.data import encode, texts
from toolkit.data import run as run_module
from toolkit.data.blocks import Blocks
from toolkit.data.config import DataSection
from toolkit.errors import DataError

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def tokenizer(tmp_path: Path, tiny_tokenizer) -> Path:
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def everything(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in files
        if path.name != "manifest.json"
    }


def splits(folder: Path) -> dict[str, str]:
    with (folder / "documents.csv").open() as file:
        return {row["id"]: row["split"] for row in csv.DictReader(file)}


def test_the_number_of_processes_changes_nothing(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
):
    write_corpus(tmp_path)
    monkeypatch.setenv("TOOLKIT_WORKERS", "1")
    run(section(tmp_path), tmp_path / "one", tokenizer)
    monkeypatch.setenv("TOOLKIT_WORKERS", "2")
    run(section(tmp_path), tmp_path / "two", tokenizer)
    assert everything(tmp_path / "one") == everything(tmp_path / "two")


def test_figures_and_blocks(tmp_path: Path, tokenizer: Path):
    write_corpus(tmp_path)
    # A repetition of a test document in the training text, and a text that is too short.
    data = section(tmp_path, replay_fraction=0.2)
    run(data, tmp_path / "first", tokenizer)
    test = json.loads((tmp_path / "first/test.jsonl").read_text().splitlines()[0])
    with (tmp_path / "domain.jsonl").open("a") as file:
        for number in range(5):
            file.write(json.dumps({"text": f"{test['text']}", "n": number}) + "\n")
        file.write('{"text": "too short"}\n')
    results = run(data, tmp_path / "second", tokenizer)
    docs = results["sources"]["docs"]
    assert docs["read"]["documents"] == 66
    assert docs["short"]["documents"] == 1
    assert docs["repeated"]["documents"] == 5
    assert results["train"]["replay_share"] == pytest.approx(0.2, abs=0.05)
    blocks = Blocks.open(tmp_path / "second")
    stage = blocks.stages[0]
    assert stage.num_positions == results["train"]["num_blocks"]
    batch = stage.read(range(stage.num_positions))
    total = results["train"]["domain_tokens"] + results["train"]["general_tokens"]
    assert batch.num_targets == pytest.approx(total, rel=0.05)
    report = (tmp_path / "second/report.md").read_text()
    assert "| repeated | 5 |" in report
    # Adding documents moved none.
    before, after = splits(tmp_path / "first"), splits(tmp_path / "second")
    assert {k: after[k] for k in before if k.startswith("docs") and k in after} == {
        k: v for k, v in before.items() if k.startswith("docs") and k in after
    }
    assert not (tmp_path / "second/texts").exists()


def test_training_text_that_overlaps_evaluation_is_left_out(tmp_path: Path, tokenizer: Path):
    write_corpus(tmp_path)
    data = section(
        tmp_path, cleaning={"max_overlap_fraction": 0.1, "near_duplicate_similarity": None}
    )
    run(data, tmp_path / "first", tokenizer)
    test = json.loads((tmp_path / "first/test.jsonl").read_text().splitlines()[0])
    chance = random.Random(0)  # noqa: S311
    with (tmp_path / "domain.jsonl").open("a") as file:
        for _ in range(10):
            words = " ".join(f"n{chance.randrange(3000)}" for _ in range(60))
            file.write(json.dumps({"text": f"{words} {test['text']}"}) + "\n")
    results = run(data, tmp_path / "second", tokenizer)
    assert results["sources"]["docs"]["overlaps evaluation"]["documents"] >= 4


def test_a_limit_takes_documents_by_hash(tmp_path: Path, tokenizer: Path):
    write_corpus(tmp_path)
    data = section(tmp_path)
    values = data.model_dump()
    values["sources"]["docs"]["split"]["train"]["max_tokens"] = 1000
    whole, limited = tmp_path / "whole", tmp_path / "limited"
    run(data, whole, tokenizer)
    results = run(DataSection.model_validate(values), limited, tokenizer)
    tokens = results["sources"]["docs"]["trained on"]["tokens"]
    with (limited / "documents.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
    docs = [int(row["tokens"]) for row in rows if row["id"].startswith("docs")]
    assert sum(docs) == tokens
    assert 1000 <= tokens < 1000 + max(docs)
    assert set(splits(limited)) < set(splits(whole))


def test_curriculum(tmp_path: Path, tokenizer: Path):
    write_corpus(tmp_path)
    stages = [
        {"name": "mixed", "tokens": 3000, "mixture": {"docs": 0.5, "web": 0.5}},
        {"name": "long", "tokens": 2000, "mixture": {"docs": 1.0}, "sequence_length": 128},
    ]
    run(section(tmp_path, stages=stages), tmp_path / "out", tokenizer)
    first, second = Blocks.open(tmp_path / "out").stages
    assert (first.name, first.sequence_length, second.sequence_length) == ("mixed", 64, 128)
    batch = first.read(range(first.num_positions))
    assert batch.num_targets == pytest.approx(3000, rel=0.1)
    domain = sum(
        first.read([p]).num_targets
        for p in range(first.num_positions)
        if first.source_at(p) == "docs"
    )
    assert domain / batch.num_targets == pytest.approx(0.5, abs=0.05)
    assert second.read(range(second.num_positions)).num_targets == pytest.approx(2000, rel=0.1)


def test_conversations_train_on_answers_only(tmp_path: Path, tokenizer: Path):
    write_corpus(tmp_path)
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"question {n} " + paragraph(n, 3)},
                {"role": "assistant", "content": f"answer {n} " + paragraph(n + 100, 3)},
            ]
        }
        for n in range(30)
    ]
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    values = section(tmp_path).model_dump()
    values["sources"]["docs"] |= {"files": [f"{tmp_path}/chat.jsonl"], "messages_field": "messages"}
    values["cleaning"] |= {"near_duplicate_similarity": None, "decontamination_ngram": None}
    run(DataSection.model_validate(values), tmp_path / "out", tokenizer)
    stage = Blocks.open(tmp_path / "out").stages[0]
    chat = [p for p in range(stage.num_positions) if stage.source_at(p) == "docs"]
    batch = stage.read(chat)
    share = batch.num_targets / int((batch.segments >= 0).sum())
    assert 0.3 < share < 0.7


def test_nothing_to_train_on_says_what_there_was(tmp_path: Path, tokenizer: Path):
    write_corpus(tmp_path)
    with pytest.raises(DataError, match=r"no training documents of the domain.*short 60"):
        run(section(tmp_path, cleaning={"min_words": 5000}), tmp_path / "out", tokenizer)


def _write_copies(folder: Path, copies: int, texts: int = 150) -> None:
    """Texts of which each stands so many times, in an order by chance; all copies have one name."""
    rows = []
    for number in range(texts):
        chance = random.Random(f"copied {number}")  # noqa: S311
        text = " ".join(f"d{chance.randrange(3000)}" for _ in range(60))
        rows += [{"text": text, "who": f"{number}.{copy}"} for copy in range(copies)]
    random.Random(1).shuffle(rows)  # noqa: S311
    (folder / "domain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("kind", ["exact", "near", "kept"])
def test_texts_that_stand_often_are_not_drawn_to_the_test_set(
    tmp_path: Path, tokenizer: Path, kind: str
):
    write_corpus(tmp_path)
    _write_copies(tmp_path, 15)
    rows = [json.loads(line) for line in (tmp_path / "domain.jsonl").read_text().split("\n")[:-1]]
    if kind == "near":
        rows = [{**row, "text": f"{row['text']} e{row['who']}"} for row in rows]
    (tmp_path / "domain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = section(tmp_path, cleaning={"decontamination_ngram": None}).model_dump()
    values["sources"]["docs"]["id_field"] = "who"
    values["replay_fraction"] = 0.0
    if kind == "kept":
        values["cleaning"] |= {"drop_exact_duplicates": False, "near_duplicate_similarity": None}
    run(DataSection.model_validate(values), tmp_path / "out", tokenizer)
    found: dict[str, set[str]] = {}
    for name, split in splits(tmp_path / "out").items():
        if name.startswith("docs/"):
            found.setdefault(name.removeprefix("docs/").split(".")[0], set()).add(split)
    assert len(found) == 150
    assert all(len(own) == 1 for own in found.values())  # copies never straddle
    drawn = [next(iter(own)) for own in found.values()]
    # 30 of 150 are expected in each; four standard deviations of a binomial are 20.
    assert all(10 <= drawn.count(split) <= 50 for split in ("validation", "test"))


def test_what_is_for_evaluation_alone_stays_before_training_text(tmp_path: Path, tokenizer: Path):
    write_corpus(tmp_path)
    (tmp_path / "held.jsonl").write_text((tmp_path / "domain.jsonl").read_text())
    values = section(tmp_path).model_dump()
    values["sources"]["docs"]["split"] = {"train": {"fraction": 1.0}}
    split = {"validation": {"fraction": 0.5}, "test": {"fraction": 0.5}}
    held = {"role": "domain", "files": [f"{tmp_path}/held.jsonl"], "split": split}
    values["sources"] |= {"own": held}
    with (tmp_path / "domain.jsonl").open("a") as file:
        file.write(json.dumps({"text": " ".join(map(str, range(99)))}))
    run(DataSection.model_validate(values), tmp_path / "out", tokenizer)
    found = splits(tmp_path / "out")
    assert sum(name.startswith("own/") for name in found) == 60
    assert [name for name in found if name.startswith("docs/")] == ["docs/domain#000061"]


def test_conversations_that_the_template_cannot_take_are_in_no_split(
    tmp_path: Path, tokenizer: Path
):
    write_corpus(tmp_path)
    template = tokenizer / "chat_template.jinja"
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    template.write_text(refusal + template.read_text())
    rows = []
    for number in range(40):
        words = paragraph(number, 3)
        rows.append([{"role": "user", "content": words}, {"role": "assistant", "content": words}])
    rows[7].insert(0, {"role": "system", "content": "be brief"})
    lines = (json.dumps({"messages": row}) + "\n" for row in rows)
    (tmp_path / "chat.jsonl").write_text("".join(lines))
    values = section(tmp_path).model_dump()
    docs = values["sources"]["docs"]
    docs |= {"files": [f"{tmp_path}/chat.jsonl"], "messages_field": "messages"}
    values["cleaning"] |= {"near_duplicate_similarity": None, "decontamination_ngram": None}
    with pytest.raises(
        DataError, match=r"docs/chat#000008: .*does not take it \(no system\).*skip"
    ):
        run(DataSection.model_validate(values), tmp_path / "out", tokenizer)
    docs["skip_damaged"] = True
    entry = run(DataSection.model_validate(values), tmp_path / "out", tokenizer)["sources"]["docs"]
    assert (entry["damaged"]["documents"], entry["read"]["documents"]) == (1, 39)
    assert "docs/chat#000008" in (tmp_path / "out/report.md").read_text()
    assert "docs/chat#000008" not in splits(tmp_path / "out")
    template.write_text("{% for m in messages %}{{ m.role }}{% endfor %}")
    encode._conversations_at.cache_clear()
    encode._full_tokenizer_at.cache_clear()
    with pytest.raises(
        DataError, match=r"sources\.docs: none of its 40 conversations has anything"
    ):
        run(DataSection.model_validate(values), tmp_path / "again", tokenizer)


_KILLED = """
import os
import signal
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.helpers.corpora import run, section
from toolkit.data import run as run_module
from toolkit.data import texts
texts.SHARD_BYTES = 2000
folder = Path({folder!r})

def die(event, _):
    # Before a file gets its name, once more than three have theirs.
    if event == "os.rename" and len(list((folder / "killed.partial").glob({marks!r}))) > 3:
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(die)
run(section(folder), folder / "killed", folder / "tokenizer")
"""


@pytest.mark.parametrize(("part", "marks"), [("texts", "00-*.json"), ("tokens", "00-*.npz")])
def test_a_killed_stage_continues_and_ends_the_same(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch, part: str, marks: str
):
    write_corpus(tmp_path, count=300)
    monkeypatch.setattr(texts, "SHARD_BYTES", 2000)
    monkeypatch.setenv("TOOLKIT_WORKERS", "1")
    run(section(tmp_path), tmp_path / "whole", tokenizer)
    script = _KILLED.format(root=str(ROOT), folder=str(tmp_path), marks=f"{part}/{marks}")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    work = tmp_path / "killed.partial"
    stamp = {path: path.stat().st_ino for path in (work / part).glob(marks)}
    assert len(stamp) > 3
    if part == "tokens":  # a shard counts once its sums stand, which are written last
        sums = work / "texts"
        stamp = {p: n for p, n in stamp.items() if (sums / f"tokens-{p.stem}.json").is_file()}
    kept: list[bool] = []
    real = run_module.write_blocks

    def look(*arguments: Any) -> None:  # the last thing made of both
        kept.extend(path.stat().st_ino == inode for path, inode in stamp.items())
        real(*arguments)

    monkeypatch.setattr(run_module, "write_blocks", look)
    run(section(tmp_path), tmp_path / "killed", tokenizer)
    assert kept
    assert all(kept)  # what stood was not made again
    assert everything(tmp_path / "killed") == everything(tmp_path / "whole")


@pytest.mark.parametrize(
    "name",
    [
        "texts/00-00001.parquet",
        "texts/00-00001.npz",
        "texts/00-00001.json",
        "texts/00.json",
        "tokens/00-00001-0.npy",
        "tokens/00-00001-0.npz",
        "texts/tokens-00-00001-0.json",
    ],
)
def test_what_was_damaged_meanwhile_is_made_again(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    write_corpus(tmp_path)
    monkeypatch.setattr(texts, "SHARD_BYTES", 8000)
    monkeypatch.setenv("TOOLKIT_WORKERS", "1")
    run(section(tmp_path), tmp_path / "whole", tokenizer)
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "write_blocks", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(section(tmp_path), tmp_path / "out", tokenizer)
    path = tmp_path / "out.partial" / name
    data = path.read_bytes()
    place = len(data) * 2 // 3
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    run(section(tmp_path), tmp_path / "out", tokenizer)
    assert everything(tmp_path / "out") == everything(tmp_path / "whole")


def test_every_document_is_accounted_for(tmp_path: Path, tokenizer: Path):
    write_corpus(tmp_path)
    (tmp_path / "task.json").write_text(json.dumps({"input": " ".join(f"t{n}" for n in range(30))}))
    with (tmp_path / "domain.jsonl").open("a") as file:
        filler = " ".join(f"f{n}" for n in range(900))
        leak = json.loads((tmp_path / "task.json").read_text())["input"]
        for number in range(10):  # long pages, each with the whole of the task
            file.write(json.dumps({"text": f"{filler} {number} {leak} {number}"}) + "\n")
        file.write("{damaged\n")
    values = section(tmp_path).model_dump()
    values["sources"]["docs"]["split"]["train"]["max_tokens"] = 800
    values["sources"]["docs"]["split"]["test"]["max_tokens"] = 300
    values["sources"]["docs"]["skip_damaged"] = True
    values["cleaning"]["decontaminate_files"] = [str(tmp_path / "task.json")]
    values["cleaning"]["near_duplicate_similarity"] = None
    entry = run(DataSection.model_validate(values), tmp_path / "out", tokenizer)["sources"]["docs"]
    assert entry["read"]["documents"] == 70
    assert entry["damaged"]["documents"] == 1
    assert entry["not needed"]["documents"] > 0
    steps = [key for key, value in entry.items() if isinstance(value, dict)]
    out = sum(entry[key]["documents"] for key in steps if key not in {"read", "damaged"})
    assert out == entry["read"]["documents"]
    with (tmp_path / "out/documents.csv").open() as file:
        trained = [row for row in csv.DictReader(file) if row["split"] == "train"]
    assert max(int(row["bytes"]) for row in trained) < 2000  # no page with the task in it
    assert "| damaged | 1 |" in (tmp_path / "out/report.md").read_text()


def test_tokens_are_stored_no_wider_than_needed(tmp_path: Path, tokenizer: Path):
    write_corpus(tmp_path)
    run(section(tmp_path), tmp_path / "out", tokenizer)
    for path in (tmp_path / "out/tokens").glob("*.npy"):
        assert np.load(path, mmap_mode="r").dtype == np.uint16
