"""Preparing PubMed text: this toolkit's data stage against the `datasets.map` way.

Ours reads, cleans, removes exact and near duplicates, splits, takes out of training what overlaps
evaluation, tokenizes and packs. The other side is what transformers' run_clm example does: load the
same JSON lines, tokenize in batches with two processes, join all and cut into blocks; it cleans
nothing. Wall time of the whole command (and without imports), peak memory as the proportional set
sizes of all processes together, medians and ratios.

    make bench-data                      # 40 MB, and ours alone at ten times that
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

BLOCK = 512
GENERAL = 500
"""Documents that stand in for general text, since a recipe needs some."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("runs/finance/general"))
    parser.add_argument("--megabytes", type=int, default=40)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--times", type=int, default=10, help="size of the large corpus; 0: none")
    parser.add_argument("--only", choices=["ours", "theirs"], help="leave the other side out")
    parser.add_argument("--side", choices=["ours", "theirs"])
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if arguments.side:
        print("FIGURES " + json.dumps(SIDES[arguments.side](arguments.model, arguments.folder)))
        return
    if not (arguments.model / "tokenizer.json").is_file():
        sys.exit(f"{arguments.model}: no tokenizer there; run `make cpt` first, or give --model.")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        texts = list(read_abstracts(arguments.megabytes * 1_000_000))
        write_corpus(folder, texts, 1)
        rows = []
        for number in range(arguments.runs):
            both = ("ours", "theirs") if number % 2 == 0 else ("theirs", "ours")
            sides = [side for side in both if arguments.only in (None, side)]
            rows.append({side: run(side, folder, arguments.model) for side in sides})
            for side in sides:
                print(line(side, arguments.megabytes, rows[-1][side]), flush=True)
        if arguments.only is None:
            show(rows)
        if arguments.times:
            write_corpus(folder, texts, arguments.times)
            del texts
            figures = run("ours", folder, arguments.model)
            print(line("ours", arguments.megabytes * arguments.times, figures))


def read_abstracts(limit: int) -> Iterator[str]:
    """Titles and abstracts of the medical recipe's artifact, up to so many bytes."""
    from toolkit.data.sources import read_documents
    from toolkit.recipe.load import load_recipe

    source = load_recipe(ROOT / "recipes/medical.yaml").data.sources["abstracts"]
    total = 0
    for document in read_documents("abstracts", source):
        if document.text:
            total += len(document.text.encode())
            yield document.text
        if total >= limit:
            return


def write_corpus(folder: Path, texts: list[str], times: int) -> None:
    """The texts, then altered copies: no two are near duplicates, and new words keep coming, as
    they do in a larger corpus."""
    chance = random.Random(1)  # noqa: S311
    for name in ("domain", "general"):
        own = texts[:GENERAL] if name == "general" else texts[GENERAL:]
        with (folder / f"{name}.jsonl").open("w") as file:
            for copy in range(times):
                for text in own:
                    changed = altered(text, chance) if copy else text
                    file.write(json.dumps({"text": changed}) + "\n")


def altered(text: str, chance: random.Random) -> str:
    words = text.split(" ")
    for place in chance.sample(range(len(words)), len(words) // 6):
        words[place] = words[chance.randrange(len(words))]
    for place in chance.sample(range(len(words)), len(words) // 150):
        letters = list(words[place])
        chance.shuffle(letters)
        words[place] = "".join(letters)
    return " ".join(words)


def ours(model: Path, folder: Path) -> dict[str, Any]:
    from toolkit.data.config import DataSection
    from toolkit.data.run import run_data
    from toolkit.stage import Stage, read_manifest

    began = time.perf_counter()
    limits = {"max_tokens": 100_000}
    split = {"train": {"fraction": 0.96}, "validation": {"fraction": 0.02, **limits}}
    split["test"] = split["validation"]
    section = DataSection.model_validate(
        {
            "sequence_length": BLOCK,
            "replay_fraction": 0.0,
            "end_of_document": "<|endoftext|>",
            "sources": {
                "domain": {"role": "domain", "files": [f"{folder}/domain.jsonl"], "split": split},
                "general": {"role": "general", "files": [f"{folder}/general.jsonl"]},
            },
        }
    )
    with tempfile.TemporaryDirectory() as work:
        run_data(section, Stage(Path(work) / "data", {}, {}, 1), model, lambda _: None)
        seconds = time.perf_counter() - began
        results = read_manifest(Path(work) / "data")["results"]
    reasons = ("short", "repetitive", "repeated", "nearly repeated", "overlaps evaluation")
    steps = results["sources"]["domain"]
    return {
        "seconds_without_imports": seconds,
        "tokens": results["train"]["domain_tokens"],
        "left_out": {key: steps[key]["documents"] for key in reasons if key in steps},
    }


def theirs(model: Path, folder: Path) -> dict[str, Any]:
    from itertools import chain

    from datasets import load_dataset
    from transformers import AutoTokenizer

    began = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(model)

    def tokenize(examples: dict[str, Any]) -> Any:
        return tokenizer(examples["text"])

    def group_texts(examples: dict[str, Any]) -> dict[str, Any]:
        joined = {k: list(chain(*examples[k])) for k in examples}
        total = len(joined[next(iter(examples))]) // BLOCK * BLOCK
        result = {k: [t[i : i + BLOCK] for i in range(0, total, BLOCK)] for k, t in joined.items()}
        result["labels"] = result["input_ids"].copy()
        return result

    with tempfile.TemporaryDirectory() as cache:
        files = [str(folder / f"{name}.jsonl") for name in ("domain", "general")]
        raw = load_dataset("json", data_files=files, cache_dir=cache, split="train")
        tokenized = raw.map(tokenize, batched=True, num_proc=2, remove_columns=["text"])
        blocks = tokenized.map(group_texts, batched=True, num_proc=2)
        seconds = time.perf_counter() - began
        return {"seconds_without_imports": seconds, "tokens": len(blocks) * BLOCK}


SIDES = {"ours": ours, "theirs": theirs}


def run(side: str, folder: Path, model: Path) -> dict[str, Any]:
    """One side in a process of its own, its memory watched."""
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    if side == "ours":
        environment["TOKENIZERS_PARALLELISM"] = "false"  # as our command line sets it
    else:
        environment.pop("TOKENIZERS_PARALLELISM", None)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--model", str(model)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    peak = [0, 0]
    watcher = threading.Thread(target=watch, args=(process, peak), daemon=True)
    watcher.start()
    out, errors = process.communicate()
    seconds = time.perf_counter() - began
    watcher.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found = [text for text in out.splitlines() if text.startswith("FIGURES ")]
    if not found:
        sys.exit(f"{side} failed:\n{out[-2000:]}\n{errors[-4000:]}")
    figures = dict(json.loads(found[0].removeprefix("FIGURES ")))
    figures["processor_seconds"] = busy
    return {"seconds": seconds, "peak_bytes": peak[0], "private_bytes": peak[1], **figures}


def watch(process: subprocess.Popen[str], peak: list[int]) -> None:
    """Largest sums over a process and its children: all pages, and those that are not a file's."""
    root = psutil.Process(process.pid)
    while process.poll() is None:
        sums = [0, 0]
        try:
            members = [root, *root.children(recursive=True)]
        except psutil.Error:
            break
        for member in members:
            try:
                text = Path(f"/proc/{member.pid}/smaps_rollup").read_text()
            except OSError:
                continue
            sizes = dict(row.split()[:2] for row in text.splitlines()[1:])
            for number, key in enumerate(("Pss:", "Pss_Anon:")):
                sums[number] += int(sizes.get(key, 0)) * 1024
        peak[:] = [max(a, b) for a, b in zip(peak, sums, strict=True)]
        time.sleep(0.1)


def line(side: str, megabytes: int, figures: dict[str, Any]) -> str:
    text = (
        f"{side} {megabytes} MB: {figures['seconds']:.1f} s "
        f"({figures['seconds_without_imports']:.1f} without imports, "
        f"{figures['processor_seconds']:.1f} of processors), "
        f"{figures['peak_bytes'] / 1e9:.2f} GB ({figures['private_bytes'] / 1e9:.2f} without "
        f"mapped files), {figures['tokens']:,} tokens"
    )
    out = ", ".join(f"{count} {reason}" for reason, count in figures.get("left_out", {}).items())
    return f"{text}; left out {out}" if out else text


def show(rows: list[dict[str, Any]]) -> None:
    for key, name in (
        ("seconds", "time"),
        ("seconds_without_imports", "time without imports"),
        ("processor_seconds", "processor time"),
        ("peak_bytes", "peak memory"),
    ):
        ratios = [row["theirs"][key] / row["ours"][key] for row in rows]
        medians = {side: statistics.median(row[side][key] for row in rows) for side in SIDES}
        unit = 1e9 if key == "peak_bytes" else 1
        print(
            f"{name}: ours {medians['ours'] / unit:.2f}, theirs {medians['theirs'] / unit:.2f}; "
            f"theirs is {statistics.median(ratios):.2f} times ours "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
