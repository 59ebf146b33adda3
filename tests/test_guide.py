"""Every command of the guide is run, every recipe in it read, every figure looked up.

One tiny finance run is shared by all pages: a random model and made-up filings stand in for the
long ones, and `make` is the Makefile's own.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import paragraph
from tests.helpers.guide import (
    DOCS,
    ROOT,
    Block,
    Project,
    blocks,
    jsonl,
    pages,
    parse_accelerate,
    parse_toolkit,
    start_server,
    toolkit_words,
    words_of,
)
from toolkit.compare.ways import load_comparison
from toolkit.errors import ToolkitError
from toolkit.load_yaml import load_yaml, load_yaml_documents
from toolkit.merge.moe.config import load_moe_config
from toolkit.recipe.load import load_recipe
from toolkit.recipe.schema import Recipe
from toolkit.section import parse_section

PAGES = pages()
BLOCKS = [block for page in PAGES for block in blocks(page)]
OTHERS_PROGRAMS = {"git", "hf", "cd", "source", "sbatch", "squeue", "pip", "python", "createdb"}
"""What a block that is not run may call besides the toolkit, make and accelerate."""

FOR_RANDOM_MODELS: dict[str, Any] = {
    "train": {"schedule": {"peak_lr": 5e-3}},
    "evaluate": {"retention": {"num_prompts": 8, "loss_tolerance": 9.0}},
    "search": {"num_trials": 10},
    "select": {"general_tolerance": 9.0},
}
"""A random model learns at other rates and retains nothing; recipes of pages get these too."""


def project_files(folder: Path) -> None:
    """Documents and recipes that stand in for a user's, by the names that the guide uses."""
    (folder / "recipes").mkdir()
    shutil.copytree(ROOT / "recipes" / "accelerate", folder / "recipes" / "accelerate")
    if (ROOT / "recipes" / "slurm").is_dir():
        shutil.copytree(ROOT / "recipes" / "slurm", folder / "recipes" / "slurm")
    for number in range(32):
        group = "aapl" if number < 8 else "tgt"
        path = folder / "filings" / f"{group}-{number}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(paragraph(number, sentences=20))
    news = [{"text": f"{n} " + "a cat sat on the mat and slept. " * 6} for n in range(24)]
    (folder / "news.jsonl").write_text(jsonl(news))
    for client in range(40):
        place = folder / "texts" / f"client-{client:02d}"
        place.mkdir(parents=True)
        for letter in range(3):
            text = paragraph(1000 + 3 * client + letter, sentences=30)
            (place / f"letter-{letter}.txt").write_text(text)
    general = [{"text": paragraph(5000 + n, sentences=12).replace("the", "a")} for n in range(90)]
    (folder / "general.jsonl").write_text(jsonl(general))
    talks: list[dict[str, object]] = [
        {
            "id": f"talk-{n}",
            "messages": [
                {"role": "user", "content": f"question {n} of the board and the bank?"},
                {"role": "assistant", "content": f"the bank reported net income in {n}."},
            ],
        }
        for n in range(40)
    ]
    (folder / "recipes" / "finance-questions.jsonl").write_text(jsonl(talks))
    (folder / "recipes" / "finance.yaml").write_text(yaml.safe_dump(finance_recipe()))


def finance_recipe() -> dict[str, Any]:
    """A recipe that goes the way of the real one in seconds."""
    news = {
        "role": "general",
        "files": ["news.jsonl"],
        "license": "none: made up",
        "split": {name: {"fraction": 1.0} for name in ("train", "validation", "test")},
    }
    cleaning = {
        "min_words": 5,
        "max_repeated_line_fraction": 1.0,
        "max_repeated_ngram_fraction": 1.0,
        "near_duplicate_similarity": None,
        "decontamination_ngram": None,
    }
    filings = {
        "role": "domain",
        "files": ["filings/*.txt"],
        "license": "none: made up",
        "split": {
            "train": {"groups": ["aapl*"]},
            "validation": {"groups": ["tgt*"], "fraction": 0.5},
            "test": {"groups": ["tgt*"], "fraction": 0.5},
        },
    }
    questions = {
        "role": "domain",
        "files": ["recipes/finance-questions.jsonl"],
        "messages_field": "messages",
        "id_field": "id",
        "split": {name: {"fraction": 0.34} for name in ("train", "validation", "test")},
    }
    recipe = {
        "seed": 3,
        "model": {
            "path": "runs/finance/general",
            "name": "org/tiny",
            "license": "apache-2.0",
        },
        "data": {
            "sequence_length": 64,
            "cleaning": cleaning,
            "sources": {"filings": filings, "news": news},
        },
        "train": {
            "epochs": 2,
            "schedule": {"kind": "constant"},
            "save_steps": 2,
            "save_total_limit": 4,
            "keep_checkpoints": True,
            "anneal": {"steps": 2},
        },
        "evaluate": {"window_tokens": 64, "bootstrap_resamples": 500},
        "sft": {
            "data": {
                "sequence_length": 64,
                "cleaning": cleaning,
                "sources": {"questions": questions, "news": news},
            },
            "train": {"schedule": {"peak_lr": 1e-3}, "forgetting_monitor": {"evaluations": 1}},
        },
        "heal": {"source": "specialist", "policy": "off", "num_tokens": 500, "give_back": 0.5},
        "publish": {"language": ["en"]},
    }
    return put_into(recipe, FOR_RANDOM_MODELS)


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Path]
) -> Iterator[Project]:
    """The project after `make merge DOMAIN=finance`."""
    folder = tmp_path_factory.mktemp("guide")
    socket = folder / "s"
    server = start_server(socket)
    try:
        project = Project(folder / "shared", socket)
        project.lay_out()
        project_files(project.folder)
        for name in ("models/general", "runs/finance/general"):
            make_model(project.folder / name, max_position_embeddings=2048)
        done = project.run("make merge DOMAIN=finance")
        assert done.returncode == 0, done.stdout + done.stderr
        yield project
    finally:
        server.kill()
        server.wait()
        assert server.stdout is not None
        server.stdout.close()


@pytest.fixture
def project(shared: Project, tmp_path: Path) -> Project:
    """A copy of the shared project, for one page."""
    copy = Project(tmp_path / "p", shared.socket)
    shutil.copytree(shared.folder, copy.folder, symlinks=True)
    return copy


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_run(page: Path, project: Project):
    for block in blocks(page):
        if not block.is_shell and re.fullmatch(r"[\w./-]+\.(ya?ml|jsonl|txt|py)", block.title):
            path = project.folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
            if path.parent.name == "recipes":
                values = load_yaml(path)
                smaller = put_into(values, FOR_RANDOM_MODELS)
                if {"specialist", "specialists"} & values.keys():  # trained already
                    del smaller["train"]
                path.write_text(yaml.safe_dump(smaller), encoding="utf-8")
        if not block.is_shell or block.reason_not_run is not None:
            continue
        for command in block.commands():
            done = project.run(command)
            assert done.returncode == 0, (
                f"{block.where}: {command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
            )


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.is_shell], ids=lambda b: b.where)
def test_every_command_is_one_that_the_tools_know(block: Block, project: Project):
    """Those that are run too: a wrong flag shows before anything is run."""
    assert block.reason_not_run != ""
    assert block.commands(), f"{block.where}: holds no command; console blocks need `$ `"
    for command in block.commands():
        check_command(command, project, block.reason_not_run is None)


def check_command(command: str, project: Project, is_run: bool) -> None:
    words = words_of(command)
    told = toolkit_words(command)
    if told is not None and told != ["--help"]:
        parse_toolkit(told)
    if "accelerate" in words[:1]:
        parse_accelerate(words)
    elif words[:1] == ["make"]:
        for line in project.make_lines(words):
            if (inner := toolkit_words(line)) is not None:
                parse_toolkit(inner)
    elif told is None and not is_run:
        assert words[0] in OTHERS_PROGRAMS, f"{command}: nothing checks what is not run"


def test_a_wrong_flag_in_the_guide_is_found(project: Project):
    check_command("toolkit merge choose finance --runs runs", project, False)
    check_command("make publish DOMAIN=finance REPO=org/name", project, False)
    for command in (
        "toolkit merge choose finance --runss runs",
        "toolkit merge chose finance",
        "toolkit cpt anneal finance --from-step latest",
        "accelerate launch -m toolkit cpt run finance --rune x",
        "make marge DOMAIN=finance",
    ):
        with pytest.raises(ValueError, match=r"runss|chose|valid integer|rune|marge"):
            check_command(command, project, False)
    with pytest.raises(SystemExit):
        check_command("accelerate launch --config_fil x -m toolkit cpt run a", project, False)
    with pytest.raises(AssertionError, match="nothing checks"):
        check_command("curl example.org", project, False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_within_sentences_exist(page: Path, project: Project):
    text = re.sub(r"(?ms)^\s*```.*?^\s*```$", "", page.read_text(encoding="utf-8"))
    for command in re.findall(r"(?m)^ {4}((?:toolkit|make|accelerate) .+)$", text):
        check_command(command, project, False)
    for command in re.findall(r"`((?:toolkit|make) [^`…]+)`", text):
        if command.startswith("make "):
            assert project.make_lines(command.split())
            continue
        words = command.split()[1:]
        names = words[: next((i for i, w in enumerate(words) if not w.islower()), len(words))]
        leaf, rest = leaf_of(names)
        known = {option for parameter in leaf.params for option in
                 (*parameter.opts, *parameter.secondary_opts)}  # fmt: skip
        wrong = {word for word in [*rest, *words] if word.startswith("--")} - known
        assert not wrong, f"{page.name}: `{command}` has no {wrong}"


def leaf_of(words: list[str]) -> tuple[Any, list[str]]:
    import typer

    from toolkit.cli.main import app

    command = typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        assert words[0] in command.commands, f"no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.language == "yaml"], ids=lambda b: b.where
)
def test_yaml_is_what_the_toolkit_reads(block: Block, tmp_path: Path):
    path = tmp_path / "block.yaml"
    path.write_text(block.text, encoding="utf-8")
    values, *_ = load_yaml_documents(path)
    if "merge_method" in values:
        read_merge(path)
    elif "experts" in values:
        load_moe_config(path)
    elif block.title.startswith("recipes/ways/"):
        load_comparison(path, load_recipe(ROOT / "recipes" / "finance.yaml"))
    elif block.title.startswith("recipes/"):
        parse_section(Recipe, values, where=block.where, what="recipe")
    else:  # some sections, put into the finance recipe
        whole = load_yaml(ROOT / "recipes" / "finance.yaml")
        parse_section(Recipe, put_into(whole, values), where=block.where, what="recipe")


def read_merge(path: Path) -> None:
    """A merge as the toolkit runs it, or one with numbers to be found."""
    from toolkit.merge.graph import load_merge_graph
    from toolkit.search.space import load_spaces

    if "search:" in path.read_text(encoding="utf-8"):
        assert load_spaces([path.stem], [path.parent])
    else:
        load_merge_graph(path)


def put_into(whole: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """Values of a part in place of those of the whole, section by section."""
    result = dict(whole)
    for key, value in part.items():
        old = result.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        result[key] = put_into(old, value) if both and key not in {"sources", "model"} else value
    return result


def test_a_wrong_recipe_in_the_guide_is_found(tmp_path: Path):
    block = Block("x.md", 1, "yaml", "", "train: {epoch: 1}\n")
    with pytest.raises(ToolkitError, match="did you mean epochs"):
        test_yaml_is_what_the_toolkit_reads(block, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_figures_come_from_runs(page: Path):
    """Numbers with three decimals or more are measured ones: they stand in the log or beside it."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"(?s)```.*?```|<svg.*?</svg>|https?://\S+", "", text)
    # Tables that a command writes into a page, from the runs themselves.
    text = re.sub(r"(?s)<!-- [^>]*: begin -->.*?<!-- [^>]*: end -->", "", text)
    text = re.sub(r"\b\d{4}\.\d{4,5}\b", "", text)  # arXiv's numbers
    sources = [ROOT / "dev/LOG.md", ROOT / "README.md", *sorted((DOCS / "figures").glob("*.md"))]
    known = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    unknown = [n for n in re.findall(r"(?<![\w.])\d+\.\d{3,}", text) if n not in known]
    assert not unknown, f"{page.name}: not in dev/LOG.md: {', '.join(unknown)}"


@pytest.mark.parametrize("name", ["reference.py", "architecture.py", "cluster.py"])
def test_generated_pages_are_up_to_date(name: str):
    script = ROOT / "docs" / "tools" / name
    done = subprocess.run(
        [sys.executable, str(script), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
