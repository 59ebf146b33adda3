"""`toolkit init`: each kind of input is written, read and planned; one goes the whole way."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.conftest import paragraph
from tests.helpers.adapters import make_adapter
from tests.helpers.paged_files import make_docx, make_pdf
from tests.helpers.projects import toolkit
from toolkit.cli import main
from toolkit.errors import ConfigError
from toolkit.pipeline.run import Run
from toolkit.plan import new_data, new_model, new_recipe
from toolkit.plan.new_recipe import InitRequest, init_recipe
from toolkit.plan.plan import PlanRequest, finish, make_plan
from toolkit.recipe.load import load_recipe
from toolkit.recipe.schema import Recipe


@pytest.fixture
def place(tmp_path: Path, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and general text, which is the working folder."""
    make_model(tmp_path / "model")
    rows = [{"text": paragraph(5000 + n, 12).replace("the", "a")} for n in range(60)]
    (tmp_path / "web.jsonl").write_text(jsonl(rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def unwrapped(text: str) -> str:
    """Comments over several lines as one."""
    return " ".join(line.strip(" #") for line in text.splitlines())


def letters(folder: Path, clients: int = 12, each: int = 3) -> None:
    for client in range(clients):
        for number in range(each):
            path = folder / f"client {client}" / f"letter-{number}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(paragraph(10 * client + number, 12))


def reports(number: int, each: int = 12) -> list[str]:
    return [paragraph(100 * number + n, each) for n in range(3)]


def made(**request: Any) -> tuple[Recipe, str]:
    """The recipe that comes of a request, and its text; it is planned too."""
    path = init_recipe(InitRequest(**{"name": "mine", "model": "model", **request}))
    assert not list(path.parent.glob(".*"))
    run = Run.open("mine")
    finish(make_plan(run, PlanRequest(measure=False)))
    return run.recipe, path.read_text(encoding="utf-8")


def test_a_folder_of_folders_and_general_rows(place: Path):
    letters(place / "letters")
    (place / "letters" / "logo.png").write_bytes(b"x")
    (place / "model" / "README.md").write_text("---\nlicense: apache-2.0\n---\nA model.\n")
    recipe, text = made(documents=("letters",), general=("web.jsonl",))
    source = recipe.data.sources["letters"]
    assert (source.role, source.files) == ("domain", ("letters/**/*.txt",))
    assert (source.group_folders, source.group_together) == (1, True)
    assert source.split["validation"].fraction == source.split["test"].fraction == 0.2
    assert recipe.data.sources["web"].role == "general"
    assert recipe.model.license == "apache-2.0"
    assert (recipe.data.sequence_length, recipe.evaluate.window_tokens) == (256, 256)
    assert recipe.data.replay_fraction == 0.15
    assert "# letters: 36 documents in 12 groups (by folder), about" in text
    assert "# Note: letters: files that nothing reads are left out (1 *.png)." in text
    assert "  # as its model card says\n  license: apache-2.0\n" in text
    assert "takes about 1" in text  # how much general text the tolerance takes


def test_without_general_text_nothing_is_replayed(place: Path):
    letters(place / "letters")
    recipe, text = made(documents=("letters",))
    assert recipe.data.replay_fraction == 0.0
    assert "# no general text was given (--general): nothing is replayed" in text


def test_replay_is_no_more_than_there_is(place: Path):
    letters(place / "letters", clients=60)
    (place / "few.jsonl").write_text(jsonl([{"text": paragraph(7000 + n, 5)} for n in range(4)]))
    recipe, text = made(documents=("letters",), general=("few.jsonl",))
    assert 0.0 < recipe.data.replay_fraction < 0.15
    assert "tokens of general text allow, repeated" in unwrapped(text)


def test_rows_with_fields_of_their_own(place: Path):
    rows = [
        {"cik": n // 4, "accession": f"0001-{n}", "filing": paragraph(n, 12), "form": "10-K"}
        for n in range(48)
    ]
    (place / "filings.jsonl").write_text(jsonl(rows))
    pq.write_table(pa.Table.from_pylist(rows), place / "more.parquet")
    lines = ["text,id", *(f'"{paragraph(900 + n, 12)}",{n}' for n in range(30))]
    (place / "notes.csv").write_text("\n".join(lines) + "\n")
    documents = ("filings.jsonl", "more.parquet", "notes.csv")
    recipe, _ = made(documents=documents, general=("web.jsonl",))
    for name in ("filings", "more"):
        source = recipe.data.sources[name]
        assert (source.text_field, source.id_field) == ("filing", "accession")
        assert (source.group_field, source.group_together) == ("cik", True)
    notes = recipe.data.sources["notes"]
    assert (notes.text_field, notes.id_field, notes.group_field) == ("text", "id", None)


def test_a_folder_of_several_kinds_is_several_sources(place: Path):
    folder = place / "mixed"
    folder.mkdir()
    for number in range(9):
        (folder / f"{number}.md").write_text(paragraph(number, 12))
    (folder / "a.jsonl").write_text(jsonl([{"body": paragraph(50 + n, 12)} for n in range(9)]))
    recipe, _ = made(documents=("mixed",), general=("web.jsonl",))
    files = {source.files: source.text_field for source in recipe.data.sources.values()}
    assert files[("mixed/**/*.jsonl",)] == "body"
    assert files[("mixed/**/*.md",)] == "text"


def test_an_archive_is_the_folder_in_it(place: Path):
    letters(place / "letters")
    with zipfile.ZipFile(place / "sent.zip", "w") as archive:
        for path in sorted((place / "letters").rglob("*.txt")):
            archive.write(path, path.relative_to(place / "letters"))
        archive.writestr("client 0/logo.png", b"x")
        archive.writestr("rows.jsonl", jsonl([{"body": paragraph(50 + n, 12)} for n in range(9)]))
    recipe, _ = made(documents=("sent.zip",), general=("web.jsonl",))
    folders = {s.files: (s.group_folders, s.text_field) for s in recipe.data.sources.values()}
    assert folders[("sent.zip//*.txt",)] == (1, "text")
    assert folders[("sent.zip//*.jsonl",)] == (None, "body")


def test_pdf_and_word_files_one_of_them_damaged(place: Path):
    folder = place / "contracts"
    folder.mkdir()
    for number in range(8):
        lines = [[text[i : i + 80] for i in range(0, 800, 80)] for text in reports(number)]
        (folder / f"{number}.pdf").write_bytes(make_pdf(lines))
        (folder / f"{number}.docx").write_bytes(make_docx(reports(100 + number)))
    (folder / "bad.pdf").write_bytes(b"%PDF-1.4 and no more")
    recipe, text = made(documents=("contracts",), general=("web.jsonl",))
    assert recipe.data.sources["contracts"].skip_damaged
    assert (
        "# 1 damaged of those looked at are left out and counted, first contracts/bad.pdf" in text
    )


def test_text_without_spaces_short_text_and_code(place: Path):
    (place / "zh").mkdir()
    for number in range(20):
        (place / "zh" / f"{number}.txt").write_text(
            "".join(chr(0x4E00 + (37 * number + 11 * n * n) % 2000) for n in range(120))
        )
    recipe, text = made(documents=("zh",))
    assert recipe.data.cleaning.decontamination_ngram == 26
    assert "# text without spaces" in text
    (place / "notes.jsonl").write_text(jsonl([{"text": paragraph(n, 2)} for n in range(40)]))
    recipe, text = made(documents=("notes.jsonl",), force=True)
    assert recipe.data.cleaning.min_words == 5
    (place / "src").mkdir()
    for number in range(12):
        code = "".join(f"def rise_{number}_{n}(a, b):\n    return a * {n} + b\n" for n in range(9))
        (place / "src" / f"part{number}.py").write_text(code)
    recipe, text = made(documents=("src",), force=True)
    assert not recipe.data.cleaning.collapse_spaces


def test_of_a_source_that_is_read_in_part_the_rest_may_be_damaged(
    place: Path, monkeypatch: pytest.MonkeyPatch
):
    for number in range(200):
        (place / f"{number:03d}.txt").write_text(paragraph(number, 12))
    monkeypatch.setattr(new_recipe, "READ_SECONDS", 0.0)
    recipe, text = made(documents=("*.txt",), general=("web.jsonl",))
    (texts, _) = recipe.data.sources.values()
    assert texts.skip_damaged
    assert "more than 64 documents" in text


def test_conversations(place: Path):
    talk = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": ""}]
    rows = [
        {"id": n, "messages": [talk[0], {**talk[1], "content": paragraph(n, 4)}]} for n in range(40)
    ]
    (place / "talks.jsonl").write_text(jsonl(rows))
    recipe, _ = made(documents=("talks.jsonl",), general=("web.jsonl",))
    source = recipe.data.sources["talks"]
    assert (source.messages_field, source.id_field) == ("messages", "id")
    (place / "model" / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="no chat template to write conversations with"):
        init_recipe(InitRequest("other", "model", ("talks.jsonl",)))
    assert not (place / "recipes" / "other.yaml").exists()


def test_names_that_yaml_would_misread(place: Path):
    folder = place / "it's: [all] {of} 'them' #1"
    letters(folder / "no")
    recipe, _ = made(documents=(str(folder.name),), general=("web.jsonl",))
    (source, _) = recipe.data.sources.values()
    assert source.files == (folder.name,)
    (place / "yes").mkdir()
    (place / "yes" / "on.jsonl").write_text(jsonl([{"no": paragraph(n, 9)} for n in range(20)]))
    recipe, _ = made(documents=("yes",), general=("web.jsonl",), force=True)
    assert recipe.data.sources["yes"].text_field == "no"


def test_few_groups_are_divided_and_it_is_said(place: Path):
    letters(place / "letters", clients=3, each=12)
    recipe, text = made(documents=("letters",))
    assert not recipe.data.sources["letters"].group_together
    assert "come from 3 groups, too few to hold some out" in text


def test_every_set_of_few_documents_has_some(place: Path):
    for number in range(7):
        (place / f"{number}.txt").write_text(paragraph(number, 12))
    recipe, text = made(documents=("*.txt",))
    from toolkit.data.sources import read_documents
    from toolkit.data.split import assign_split

    (name, source), *_ = recipe.data.sources.items()
    splits = {assign_split(d, source, recipe.seed) for d in read_documents(name, source)}
    assert splits == {"train", "validation", "test"}
    assert ("# a hash divides documents" in text) == (recipe.seed != 0)


def test_a_model_on_the_hub_that_is_not_here(place: Path):
    letters(place / "letters")
    path = init_recipe(InitRequest("mine", "org/name", ("letters",)))
    recipe = Run.open("mine").recipe
    assert recipe.model.hub == "org/name"
    assert "nothing was seen of it" in unwrapped(path.read_text())


def test_a_model_of_the_hub_is_pinned_and_looked_at(
    place: Path, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    snapshot = make_model(place / "cache" / ("0123456789" * 4))
    (snapshot / "LICENSE").write_text("\n   Apache License\n   Version 2.0, January 2004\n")
    monkeypatch.setattr(new_model, "fetch_small_files", lambda *_: snapshot)
    letters(place / "letters")
    path = init_recipe(InitRequest("mine", "org/name", ("letters",)))
    model = Run.open("mine").recipe.model
    assert (model.hub, model.revision) == ("org/name", "0123456789" * 4)
    assert model.license == "apache-2.0"
    assert "  # as LICENSE beside it begins\n" in path.read_text()


def test_an_instruct_model_ends_turns_with_another_token(
    place: Path, monkeypatch: pytest.MonkeyPatch
):
    path = place / "model" / "tokenizer.json"
    values = json.loads(path.read_text())
    values["added_tokens"] += [
        {**values["added_tokens"][0], "id": 320 + n, "content": token}
        for n, token in enumerate(("<|endoftext|>", "<|im_end|>"))
    ]
    path.write_text(json.dumps(values))
    config = json.loads((place / "model" / "tokenizer_config.json").read_text())
    (place / "model" / "tokenizer_config.json").write_text(
        json.dumps({**config, "eos_token": "<|im_end|>"})
    )
    letters(place / "letters")
    path = init_recipe(InitRequest("mine", "model", ("letters",)))
    text = path.read_text()
    assert "  # the tokenizer's own, <|im_end|>, ends a turn of chat\n" in text
    assert yaml.safe_load(text)["data"]["end_of_document"] == "<|endoftext|>"


def test_a_slow_machine_begins_with_part_of_the_text(place: Path, monkeypatch: pytest.MonkeyPatch):
    letters(place / "letters", clients=40)
    monkeypatch.setattr(new_data, "_training_budget", lambda *_: (2000.0, "about 15 minutes"))
    recipe, text = made(documents=("letters",), general=("web.jsonl",))
    assert recipe.data.sources["letters"].split["train"].max_tokens == 2000
    told = "about 15 minutes of training on this machine; remove it to train on all"
    assert told in unwrapped(text)


def test_a_finished_specialist_and_an_adapter(place: Path, make_model: Callable[..., Path]):
    letters(place / "letters")
    make_model(place / "specialist", seed=2)
    recipe, text = made(documents=("letters",), general=("web.jsonl",), specialists=("specialist",))
    assert recipe.specialist is not None
    assert recipe.specialist.path == Path("specialist")
    assert "train" not in recipe.model_fields_set
    rules = recipe.data.sources["letters"].split
    assert {name: rule.fraction for name, rule in rules.items()} == {"validation": 0.5, "test": 0.5}
    make_adapter(place / "model", place / "lora")
    recipe, text = made(documents=("letters",), specialists=("lora",), force=True)
    assert recipe.specialist is not None
    assert (recipe.specialist.adapter, recipe.specialist.strength) == ("lora", 1.0)
    assert "# a LoRA of rank 4, merged into the general model" in text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("model", "--specialist model: is the general model itself"),
        ("wider", "--specialist wider: its intermediate_size is 96, that of the general model 64"),
        ("missing", "--specialist missing: there is no such folder"),
        ("bare", "--specialist bare: holds no weights of the adapter"),
    ],
)
def test_a_specialist_that_does_not_fit(
    place: Path, make_model: Callable[..., Path], given: str, message: str
):
    letters(place / "letters")
    make_model(place / "wider", intermediate_size=96)
    (place / "bare").mkdir()
    (place / "bare" / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=message):
        init_recipe(InitRequest("mine", "model", ("letters",), specialists=(given,)))


def test_several_specialists_each_with_documents_of_its_own(
    place: Path, make_model: Callable[..., Path]
):
    for seed, name in enumerate(("finance", "law"), start=2):
        make_model(place / name, seed=seed)
        letters(place / f"{name}-texts")
    given = {
        "specialists": ("finance", "legal=law"),
        "documents": ("finance=finance-texts", "legal=law-texts"),
    }
    recipe, _ = made(general=("web.jsonl",), **given)
    assert {name: one.path for name, one in recipe.specialists.items()} == {
        "finance": Path("finance"),
        "legal": Path("law"),
    }
    assert recipe.find_owners() == {"finance_texts": "finance", "law_texts": "legal"}
    for changes, message in (
        ({"specialists": ("finance", "finance=law")}, "--specialist finance: two have this name"),
        ({"documents": ("finance-texts",)}, "say which specialist's domain it is, as NAME=PATH"),
        ({"documents": ("finance=finance-texts",)}, "--specialist legal: has no documents that"),
    ):
        with pytest.raises(ConfigError, match=message):
            init_recipe(InitRequest("other", "model", **{**given, **changes}))


def test_from_init_with_a_specialist_to_a_chosen_merge(
    place: Path, make_model: Callable[..., Path]
):
    letters(place / "letters")
    make_adapter(place / "model", place / "lora")
    words = ("--model", "model", "--documents", "letters", "--specialist", "lora")
    done = toolkit(place, "init", "mine", *words)
    assert done.returncode == 0, done.stderr
    chosen = toolkit(place, "merge", "choose", "mine")
    assert chosen.returncode == 0, chosen.stderr
    assert not (place / "runs/mine/cpt/metrics.jsonl").exists()
    assert (place / "runs/mine/merge/report.html").is_file()


def test_from_another_recipe(place: Path):
    path = init_recipe(InitRequest("copy", start_from="finance"))
    text = path.read_text()
    assert text.startswith("# copy: begun by `toolkit init` as a copy of finance.yaml.\n# Finance:")
    assert Run.open("copy").recipe == Run.open("finance").recipe
    letters(place / "letters")
    recipe, text = made(documents=("letters",), start_from="finance")
    assert set(recipe.data.sources) == {"letters", "news"}
    assert recipe.search.num_trials == 16
    assert recipe.sft is None
    assert recipe.evaluate.prompts == ()
    assert recipe.data.end_of_document is None  # of the other model
    assert "# Left out, as it speaks of what was replaced: sft, evaluate.prompts." in text


def test_from_another_recipe_with_another_model(place: Path):
    recipe = load_recipe(init_recipe(InitRequest("mine", "model", start_from="finance")))
    assert set(recipe.data.sources) == {"filings", "news"}
    assert recipe.data.sequence_length == 256  # the model's positions
    assert (recipe.model.path, recipe.data.end_of_document) == (Path("model"), None)
    assert recipe.search.num_trials == 16


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {sources: {a: x}}", r"old\.yaml: data\.sources\.a: must hold .* \(got 'x'\)"),
        ("data: {sources: {a: }}", r"data\.sources\.a: must hold keys and values \(got None\)"),
        ("train: text", r"old\.yaml: train: must hold keys and values \(got 'text'\)"),
        ("data: [1]", r"old\.yaml: data: must hold keys and values \(got \[1\]\)"),
    ],
)
def test_another_recipe_that_cannot_be_taken_apart(place: Path, text: str, message: str):
    letters(place / "letters")
    (place / "old.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        init_recipe(InitRequest("mine", "model", ("letters",), start_from="old.yaml"))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"documents": ("lettres",)}, r"--documents lettres: no such file; paths count from"),
        ({"documents": ("empty",)}, r"--documents empty: no file below empty matches it"),
        (
            {"documents": ("pictures",)},
            r"pictures: holds nothing that can be read \(1 files: \.png",
        ),
        ({"documents": ("letters/*.doc",)}, r"no file below letters matches it"),
        ({"documents": ("one.txt",)}, r"--documents one\.txt: holds 1 document, and 3 sets"),
        ({"documents": ("numbers.csv",)}, r"numbers\.csv: no field of its rows holds text"),
        ({"documents": ("blank.txt",)}, r"--documents: blank\.txt: holds no text to learn from"),
        ({"documents": ("broken.jsonl",)}, r"--documents"),
        ({"model": "modle"}, r"--model modle: there is no such folder.*[Dd]id you mean model\?"),
        ({"model": "web.jsonl"}, r"--model web\.jsonl: is a file"),
        ({"model": "letters"}, r"--model letters: holds no config\.json"),
        ({"model": "no-weights"}, r"--model no-weights: holds no weights"),
        ({"model": "no-tokenizer"}, r"--model no-tokenizer: holds no tokenizer"),
        ({"model": "adapter"}, r"is an adapter; give the model that it was trained on"),
        ({"model": None}, r"toolkit init: give --model \(a folder or a name on the hub\), or"),
        ({"documents": ()}, r"toolkit init: give --documents"),
        ({"general": ("letters",)}, r"letters: is given as --documents and as --general"),
        ({"name": "my recipe"}, r"'my recipe': a recipe's name has letters"),
        ({"name": "a@b"}, r"'a@b': a recipe's name"),
        ({"name": "../up"}, r"'../up': a recipe's name"),
        ({"start_from": "finanse"}, r"no recipe 'finanse'.*did you mean finance\?"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    place: Path, make_model: Callable[..., Path], request_: dict[str, Any], message: str
):
    letters(place / "letters")
    (place / "empty").mkdir()
    (place / "pictures").mkdir()
    (place / "pictures" / "a.png").write_bytes(b"x")
    (place / "one.txt").write_text(paragraph(1, 40))
    (place / "numbers.csv").write_text("a,b\n1,2\n3,4\n")
    (place / "blank.txt").write_text("\n\n")
    (place / "broken.jsonl").write_text('{"text": \n')
    for name, missing in (("no-weights", "model.safetensors"), ("no-tokenizer", "tokenizer.json")):
        make_model(place / name)
        (place / name / missing).unlink()
    (place / "adapter").mkdir()
    (place / "adapter" / "adapter_config.json").write_text("{}")
    values = {"name": "mine", "model": "model", "documents": ("letters",), **request_}
    with pytest.raises(ConfigError, match=message) as caught:
        init_recipe(InitRequest(**values))
    assert "\n" not in str(caught.value)
    assert not list(place.glob("recipes/*"))


def test_nothing_is_overwritten_without_force(place: Path):
    letters(place / "letters")
    made(documents=("letters",))
    with pytest.raises(ConfigError, match="is there already; give another name, or --force"):
        made(documents=("letters",))
    made(documents=("letters",), force=True)


def test_the_command_asks_on_a_terminal_and_else_says_what_is_missing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    letters(place / "letters")
    monkeypatch.setattr(sys, "argv", ["toolkit", "init"])
    with pytest.raises(SystemExit) as stop:
        main.main()
    assert stop.value.code == 2
    assert "give a NAME for the recipe" in capsys.readouterr().err

    class Terminal:
        """Answers questions, one line each."""

        answers = iter(["mine", "model", "letters", ""])

        def isatty(self) -> bool:
            return True

        def readline(self, *_: object) -> str:
            return next(self.answers) + "\n"

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with pytest.raises(SystemExit) as stop:
        main.main()
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "toolkit merge choose mine" in shown
    assert Run.open("mine").recipe.model.path == Path("model")


def test_from_init_to_a_chosen_merge(place: Path):
    letters(place / "letters", clients=20)
    words = ("--model", "model", "--documents", "letters", "--general", "web.jsonl")
    done = toolkit(place, "init", "mine", *words)
    assert done.returncode == 0, done.stderr
    chosen = toolkit(place, "merge", "choose", "mine")
    assert chosen.returncode == 0, chosen.stderr
    results = json.loads((place / "runs/mine/merge/report.json").read_text())
    assert {row["name"] for row in results["sets"]} >= {"letters", "web", "retention"}
