"""Multiple-choice questions out of files, packages and hubs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.data.artifacts import NothingMatchesError
from toolkit.data.config import SourceSection, SplitName
from toolkit.data.files import ending, source_files
from toolkit.data.formats import Faults, format_of, read_rows
from toolkit.data.unpacked import read_whole
from toolkit.errors import EvaluationError, sentence_end
from toolkit.evaluate.config import BIGBENCH, MultipleChoiceSection, fields_of_prompt
from toolkit.library_errors import first_line
from toolkit.section import replace_values
from toolkit.stage import hash_json


@dataclass(frozen=True)
class Question:
    """A question with its options.

    Attributes:
        id: unique within its set.
        group: what it belongs to.
        prompt: what the model reads first.
        options: texts of the options.
        delimiter: stands between prompt and option.
        answers: indices of the right ones, at least one.
        split: that it is for; None where a hash decides.
    """

    id: str
    group: str
    prompt: str
    options: tuple[str, ...]
    delimiter: str
    answers: tuple[int, ...]
    split: SplitName | None = None

    def content_hash(self) -> str:
        """The same for the same question wherever it stands."""
        return hash_json([" ".join(self.prompt.split()), list(self.options)])


def load_questions(section: MultipleChoiceSection) -> list[Question]:
    """All questions that a section names.

    Raises:
        EvaluationError: there are none, or one has no options or no answer.
        DataError: a file is missing or cannot be read.
    """
    questions = [question for question in _read(section) if question is not None]
    if not questions:
        raise EvaluationError(
            f"evaluate.multiple_choice, {section.name}: holds no questions, or all are struck; "
            "name other files, or drop it."
        )
    # Losses are kept by id: a second question of one id would take the first one's place.
    id_counts = Counter(question.id for question in questions)
    if repeated_id := next((name for name, count in id_counts.items() if count > 1), None):
        raise EvaluationError(
            f"evaluate.multiple_choice, {section.name}: the id {repeated_id!r} stands twice; two "
            "files of one name? Give each question a name of its own."
        )
    return questions


def _read(section: MultipleChoiceSection) -> Iterator[Question | None]:
    """All questions, and None for each that is struck."""
    if section.hub is not None:
        for number, fields in enumerate(_hub_rows(section)):
            yield _row_question(section, f"{number:06d}", f"{section.name}: row {number}", fields)
        return
    source_artifact = section.artifact
    if section.bigbench is not None:
        task_member = BIGBENCH.member.format(task=section.bigbench)
        source_artifact = replace_values(BIGBENCH, member=task_member)
    question_source = SourceSection(role="general", artifact=source_artifact, files=section.files)
    try:
        for source_file in source_files(question_source):
            with source_file.open() as stream:
                yield from _file_questions(section, source_file.key, source_file.name, stream)
    except NothingMatchesError as error:
        if section.bigbench is None:
            raise
        raise EvaluationError(
            f"{section.name}: BIG-bench {BIGBENCH.version} has no task {section.bigbench!r}; "
            "names are those of its folders, such as social_iqa or hyperbaton, with a subtask "
            "as folder/subtask."
        ) from error


def _file_questions(
    section: MultipleChoiceSection, key: str, name: str, stream: Any
) -> Iterator[Question | None]:
    if ending(name) != ".json":
        row_format = format_of(name, "auto")
        for row in read_rows(stream, name, row_format, Faults(skip=False)):
            yield _row_question(section, f"{key}{row.place}", row.where, row.fields or {})
        return
    try:
        file_values = json.loads(read_whole(stream, name))
    except (ValueError, RecursionError) as error:
        raise EvaluationError(
            f"{name}: is not valid JSON ({error}); mend it, or name it .jsonl if each line is one."
        ) from error
    if isinstance(file_values, dict) and "examples" in file_values:
        yield from bigbench_questions(section.bigbench or key, name, file_values)
        return
    if not isinstance(file_values, list):
        raise EvaluationError(
            f"{name}: must be a list of questions, or a task file of BIG-bench with `examples`."
        )
    for row_number, fields in enumerate(file_values):
        yield _row_question(section, f"{key}#{row_number:06d}", f"{name}: row {row_number}", fields)


def bigbench_questions(key: str, name: str, task: Mapping[str, Any]) -> Iterator[Question]:
    """Questions of a task file in BIG-bench's JSON schema, zero-shot.

    Options are listed in the order of the file, where BIG-bench shuffles them; everything else
    stands as its own prompts do.

    Raises:
        EvaluationError: the file is not of this schema, or an example has no options, or none that
            is right.

    Reference:
        Srivastava et al. 2022, Beyond the imitation game.
    """
    task_prefix = _text_of_task(task, "task_prefix", "", name)
    input_prefix = _text_of_task(task, "example_input_prefix", "\nQ: ", name)
    output_prefix = _text_of_task(task, "example_output_prefix", "\nA: ", name)
    choice_prefix = _text_of_task(task, "example_choice_prefix", "\n  choice: ", name)
    choice_prefix = _text_of_task(task, "choice_prefix", choice_prefix, name)
    if not isinstance(task["examples"], list):
        raise EvaluationError(
            f"{name}: its `examples` must be a list (got {type(task['examples']).__name__}); mend "
            "the file."
        )
    for example_number, example in enumerate(task["examples"]):
        example_place = f"{name}: example {example_number}"
        if not isinstance(example, dict) or not isinstance(example.get("input"), str):
            raise EvaluationError(
                f"{example_place}: has no `input` that is a text (got {example!r:.60}); mend it."
            )
        scores = example.get("target_scores")
        if not isinstance(scores, dict) or len(scores) < 2:
            raise EvaluationError(
                f"{example_place}: has no `target_scores` with several options; tasks that are "
                "answered in words cannot be multiple choice."
            )
        if not all(isinstance(score, (int, float)) for score in scores.values()):
            raise EvaluationError(
                f"{example_place}: its `target_scores` must be numbers (got "
                f"{list(scores.values())!r:.60}); mend them."
            )
        best_score = max(scores.values())
        if not best_score > 0:
            raise EvaluationError(
                f"{example_place}: none of its options is scored as right (got {best_score:g} at "
                "most); remove the question, or take a file with answers."
            )
        options = tuple(scores)
        listed_choices = "".join(f"{choice_prefix}{option}" for option in options)
        shown_choices = listed_choices if task.get("append_choices_to_input", True) else ""
        question_text = f"{input_prefix}{example['input']}{shown_choices}{output_prefix}"
        yield Question(
            id=f"{key}#{example_number:05d}",
            group=f"{key}#{example_number:05d}",
            prompt=f"{task_prefix}{question_text}",
            options=options,
            # As BIG-bench's own scoring does: a blank where the prompt does not end with one
            # already.
            delimiter="" if output_prefix[-1:].isspace() else " ",
            answers=tuple(n for n, option in enumerate(options) if scores[option] == best_score),
        )


def _text_of_task(task: Mapping[str, Any], key: str, default: str, where: str) -> str:
    text = task.get(key, default)
    if not isinstance(text, str):
        raise EvaluationError(f"{where}: `{key}` must be a text (got {text!r:.40}); mend the file.")
    return text


_STRUCK = {"true": True, "1": True, "false": False, "0": False, "": False, "none": False}
"""Files such as CSV hold only texts, in the letters of whatever program wrote them."""


def _is_struck(fields: Mapping[str, Any], where: str) -> bool:
    """Whether a reader struck a row.

    >>> [_is_struck({"struck": value}, "q.csv:1") for value in (True, "TRUE", "false", "", None)]
    [True, True, False, False, False]
    """
    struck = fields.get("struck")
    if (found := _STRUCK.get(str(struck).strip().casefold())) is None:
        raise EvaluationError(
            f"{where}: struck must be true or false (got {struck!r:.40}); whether the question "
            "counts cannot be told."
        )
    return found


def _row_question(
    section: MultipleChoiceSection, name: str, where: str, fields: Mapping[str, Any]
) -> Question | None:
    """The question of a row; None where a reader struck it."""
    if not isinstance(fields, Mapping):
        raise EvaluationError(f"{where}: must be an object (got {type(fields).__name__}).")
    if _is_struck(fields, where):
        return None
    prompt_values = {
        name: _field(fields, name, where, "prompt") for name in fields_of_prompt(section.prompt)
    }
    try:
        prompt = section.prompt.format(**prompt_values)
    except (ValueError, TypeError) as error:  # a format that fits no such value
        raise EvaluationError(
            f"{where}: `prompt` cannot be filled in ({error}); write fields as {{name}}."
        ) from error
    raw = _field(fields, section.options_field, where, "options_field")
    if isinstance(raw, str):  # as csv files hold lists
        raw = _from_json(raw, where)
    option_labels: list[str] = []
    if isinstance(raw, Mapping):
        labels = raw.get("label", ())
        option_labels = [str(label) for label in labels] if isinstance(labels, Sequence) else []
        raw = raw.get("text")
    if not isinstance(raw, Sequence) or len(raw) < 2 or not all(str(o) for o in raw):
        raise EvaluationError(
            f"{where}: {section.options_field} must be a list of two or more options (got {raw!r})."
        )
    options = tuple(str(option) for option in raw)
    answer = fields.get(section.answer_field)
    if answer is None or answer in ("", []):
        raise EvaluationError(
            f"{where}: has no answer in {section.answer_field!r}; set `answer_field`, or take a "
            "file with answers: without them nothing can be scored."
        )
    right_answers = answer if isinstance(answer, list) else [answer]
    # Without a group every question stands for itself, and is resampled alone.
    group_name = (
        name
        if section.group_field is None
        else str(_field(fields, section.group_field, where, "group_field"))
    )
    return Question(
        id=name,
        group=group_name,
        prompt=prompt,
        options=options,
        delimiter=section.target_delimiter,
        answers=tuple(_which(one, options, option_labels, where) for one in right_answers),
        split=_split(section, where, fields),
    )


def _split(
    section: MultipleChoiceSection, where: str, fields: Mapping[str, Any]
) -> SplitName | None:
    if section.split_field is None:
        return None
    split = _field(fields, section.split_field, where, "split_field")
    if split == "validation":
        return "validation"
    if split == "test":
        return "test"
    raise EvaluationError(
        f"{where}: {section.split_field} must be validation or test (got {split!r:.40}); questions "
        "of training documents are a set of their own, without split_field."
    )


def _which(answer: Any, options: Sequence[str], labels: Sequence[str], where: str) -> int:
    """Index of an answer that is given as label, text, letter or index, in this order."""
    text = str(answer)
    # Labels before indices: files with labels 1 to 4 mean those, not places from 0.
    if text in labels:
        return labels.index(text)
    # A number in the file is a place, even where an option reads the same.
    if not isinstance(answer, int) and text in options:
        return list(options).index(text)
    if text.isdecimal() and int(text) < len(options):
        return int(text)
    if len(text) == 1 and text.isupper() and ord(text) - ord("A") < len(options):
        return ord(text) - ord("A")
    raise EvaluationError(
        f"{where}: the answer {answer!r} is none of its {len(options)} options; give an index from "
        "0, a label, or the option's text."
    )


def _from_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EvaluationError(
            f'{where}: its options are not a JSON list ({error}); write them as ["…", "…"].'
        ) from error


def _field(fields: Mapping[str, Any], name: str, where: str, setting: str) -> Any:
    if name not in fields:
        known_fields = [str(field) for field in fields]
        raise EvaluationError(
            f"{where}: has no field {name!r}{sentence_end(name, known_fields)} "
            f"Fields: {', '.join(known_fields)}; set `{setting}`."
        )
    return fields[name]


def _hub_rows(section: MultipleChoiceSection) -> Iterator[Mapping[str, Any]]:
    from datasets import load_dataset  # slow to import, and few recipes need it

    hub = section.hub
    assert hub is not None  # noqa: S101  (the caller checked; this tells the type checker)
    try:
        yield from load_dataset(
            hub.dataset, hub.name, split=hub.split, revision=hub.revision, streaming=True
        )
    except (OSError, ValueError) as error:
        raise EvaluationError(
            f"{hub.dataset}: cannot be read from the hub ({first_line(error)}); give the name of "
            "a dataset that this machine can read, or `files`."
        ) from error
