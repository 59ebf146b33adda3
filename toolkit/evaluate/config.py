"""What a recipe says about evaluation. No torch here."""

from __future__ import annotations

import string
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator
from typing_extensions import Self

from toolkit.data.config import ArtifactSection, HubSection
from toolkit.section import Count, Length, PositiveInt, Section, at_most, refuse_unless_one

EvaluationRole = Literal["domain", "general", "watch"]
"""`domain` is to be gained, `general` not to be lost, `watch` is only shown."""

BIGBENCH = ArtifactSection(
    package="bigbench",
    version="1.0.0",
    sha256="1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2",
    member="*/bigbench/benchmark_tasks/{task}/task.json",
)
"""Source distribution of BIG-bench: its task files are read, it is never installed."""


def fields_of_prompt(template: str) -> list[str]:
    """Fields of a row that a prompt's template names, each once.

    Raises:
        ValueError: it is no template, or names something else than fields.

    >>> fields_of_prompt("{passage}\\n{{as it stands}} {question}")
    ['passage', 'question']
    """
    names: dict[str, None] = {}
    for _, name, form, _ in string.Formatter().parse(template):
        if name is None:
            continue
        # An empty name or a number would be a place, and a dot or bracket something within.
        if (
            not name
            or name.isdecimal()
            or any(sign in name for sign in ".[")
            or "{" in (form or "")
        ):
            raise ValueError(f"{{{name}}} is not the name of a field")
        names[name] = None
    return list(names)


def _check_prompt(template: str) -> str:
    try:
        fields_of_prompt(template)
    except ValueError as error:
        raise ValueError(
            f"write fields of a row as {{name}}, and braces of the text itself doubled ({error}; "
            f"got {template!r:.60})"
        ) from error
    return template


class MultipleChoiceSection(Section):
    """A set of multiple-choice questions: exactly one of `bigbench`, `files`, `artifact`, `hub`."""

    former_keys: ClassVar = {
        "artefact": "artifact",
        "tuning_share": "validation_fraction",
        "delimiter": "target_delimiter",
    }

    name: str
    """For tables and reports."""

    role: EvaluationRole = "general"
    """What the set is for."""

    specialist: str | None = None
    """Whose domain it is where a recipe has several `specialists`."""

    bigbench: str | None = None
    """A task of BIG-bench by its folder, such as `social_iqa`."""

    files: tuple[str, ...] | None = None
    """JSON, JSONL, CSV or parquet files with a question each row, or task files of BIG-bench. Rows
    whose `struck` is true are left out; `toolkit questions write` makes such files."""

    artifact: ArtifactSection | None = None
    """The same inside a package."""

    hub: HubSection | None = None
    """The same from a hub."""

    prompt: Annotated[str, AfterValidator(_check_prompt)] = "{question}"
    """What the model reads before an option, made of a row's fields."""

    options_field: str = "choices"
    """Field that holds the options: a list, or an object with `text` and `label` lists."""

    answer_field: str = "answer"
    """Field that says which option is right: its index, label or text; a list where several are."""

    group_field: str | None = None
    """Field whose value groups questions that belong together (a passage); by default none do."""

    split_field: str | None = None
    """Field that says which split a question is for, `validation` or `test`, in place of
    `validation_fraction`: questions of one document stay together."""

    target_delimiter: str = " "
    """Stands between prompt and option, as in lm-eval."""

    metric: Literal["acc", "acc_norm", "log_loss"] = "acc"
    """`acc` takes the likeliest option, `acc_norm` the likeliest by character; `log_loss` is the
    surprise at the right option among all, in nats: it sees small changes with few questions."""

    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """Fraction of the questions that the search sees; the others are test. A hash decides."""

    limit: PositiveInt | None = None
    """Questions of each split at most; a hash decides which."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        refuse_unless_one(self, ("bigbench", "files", "artifact", "hub"))
        return self


class RetentionSection(Section):
    """The general model's own answers to everyday prompts: what a merge must not unlearn."""

    former_keys: ClassVar = {"answer_tokens": "max_new_tokens", "prompts": "num_prompts"}

    num_prompts: Annotated[int, Field(ge=0), at_most("COUNT")] = 96
    """Prompts of each split at most, validation and test, of all kinds in turn; of ours there are
    192. 0 turns retention off. A loss counts as within the tolerance when its upper bound is: with
    few prompts the bound lies far above the loss, and less is let pass than the tolerance says."""

    files: tuple[str, ...] = ()
    """JSONL files with prompts of your own in place of ours: a `prompt` per line, with a `kind` (of
    each, half is for validation and half for test) and a `group` (stays in one split) if you
    like."""

    max_new_tokens: Length = 24
    """Answers are cut to this length."""

    loss_role: EvaluationRole = "general"
    """Role of the loss of the answers, in nats per token."""

    loss_tolerance: Annotated[float, Field(ge=0.0)] = 0.1
    """Largest rise of it accepted where its role is `general`. On finance the specialist's is 0.28,
    that of merges 0.6 and 0.3 of the way there 0.12 and 0.03."""

    kl_role: EvaluationRole = "watch"
    """Role of the divergence from the general model at each token of the answers, in nats."""

    kl_tolerance: Annotated[float, Field(ge=0.0)] = 0.1
    """Largest divergence accepted where its role is `general`."""

    top_tokens: Annotated[int, Field(ge=1), at_most("COUNT")] = 1024
    """Of the general model's distribution at each token so many probabilities are kept, and the sum
    of the rest. The divergence so found is never more than the true one; on finance 64 miss 8 % of
    it, 256 3 %, 1,024 1 %, 4,096 0.2 %. A thousand tokens take 8 MB."""


BehaviorCount = Literal["unfinished", "repetitive", "length", "script", "markup", "instructions"]
"""What is counted of an answer; see `BehaviorSection`."""


BEHAVIOR_TITLES: dict[BehaviorCount, str] = {
    "unfinished": "answers that do not end",
    "repetitive": "answers that repeat themselves",
    "length": "answers of another length",
    "script": "answers in another script",
    "markup": "answers with template signs",
    "instructions": "instructions broken",
}
"""Names of their sets."""


class BehaviorSection(Section):
    """How a model answers, counted over greedy answers to everyday prompts and to instructions that
    a program can check. Each count is a set of its own, an error of 1 or 0 an answer, compared with
    the general model's by pairs:

    - `unfinished`: the answer does not end within `max_new_tokens`.
    - `repetitive`: three tenths of its runs of four tokens or more were said before.
    - `length`: more than twice as long as the general model's, or less than half.
    - `script`: most of its letters are of another script than the prompt's.
    - `markup`: signs of the chat template in the text, or a thinking block that is not closed.
    - `instructions`: the answer breaks an instruction that a program can check; prompts with one
      are asked for this count alone, unless there are no others.
    """

    num_prompts: Annotated[int, Field(ge=2), at_most("COUNT")] = 96
    """Prompts of each split at most, of all kinds in turn; a third of ours are instructions."""

    files: tuple[str, ...] = ()
    """JSONL files with prompts of your own in place of ours, as `retention.files`; a line may have
    a `check`, such as `{"lines": 3}`, of what its answer must keep to."""

    max_new_tokens: Length = 128
    """Answers are cut to this length."""

    roles: dict[BehaviorCount, EvaluationRole] = Field(default_factory=dict)
    """What a count is for; `watch` for those that are not named: shown, and deciding nothing."""

    tolerance: Annotated[float, Field(ge=0.0)] = 0.05
    """Largest rise of the share of such answers where a count's role is `general`."""


class InfillingSection(Section):
    """Lines of held-out documents that are to be filled in, scored by their exact loss."""

    source: str | None = None
    """Name of a domain source; by default all of them."""

    per_document: Count = 4
    """Middles of each document at most; a hash decides which."""

    lines: Count = 2
    """Whole lines in a middle."""

    tokens: tuple[str, str, str] | None = None
    """Tokens for prefix, suffix and middle, as `data.fim.tokens`."""

    role: EvaluationRole = "watch"
    """What they are for where merges are searched."""


class TaskSection(Section):
    """A task of lm-eval."""

    former_keys: ClassVar = {"tuning_share": "validation_fraction"}

    task: str
    """Name of a task or group."""

    role: EvaluationRole = "watch"
    """What its items are for."""

    specialist: str | None = None
    """Whose domain it is where a recipe has several `specialists`."""

    include_path: str | None = None
    """Folder with YAML task files of your own."""

    metric: str | None = None
    """Which of the task's metrics; by default its first that is a mean over items."""

    num_fewshot: Annotated[int, Field(ge=0), at_most("COUNT")] | None = None
    """Examples in the prompt; by default as the task says."""

    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """Fraction of the items that the search sees; the others are test. A hash decides."""

    limit: PositiveInt | None = None
    """Items of each split at most."""


class EvaluateSection(Section):
    """Likelihood of held-out documents in bits per byte, and whatever else is to be watched."""

    former_keys: ClassVar = {
        "resamples": "bootstrap_resamples",
        "choices": "multiple_choice",
        "middles": "infilling",
    }

    window_tokens: Annotated[int, Field(ge=2), at_most("TOKENS")] = 512
    """Longer documents are scored window by window, each token once."""

    context_tokens: Annotated[int, Field(ge=1)] = 1
    """Tokens of the previous window that each further window sees as context. 1 is what lm-eval's
    rolling likelihood does."""

    batch_tokens: Length = 4096
    """Tokens scored at once; bounds memory, changes no result beyond rounding."""

    precision: Literal["auto", "stored", "bf16", "fp16", "fp32"] = "auto"
    """Type of the arithmetic that models are scored in. `auto`: the type they are stored in, as
    they will be used, wherever this machine is fast in it, else float32 on the same stored numbers.
    `stored`: their own type at any speed."""

    bootstrap_resamples: Annotated[int, Field(ge=100), at_most("COUNT")] = 10_000
    """Bootstrap resamples behind the intervals of a study's claims (`toolkit study`). The merge's
    figures have intervals by formula, without resamples."""

    prompts: tuple[str, ...] = ()
    """Prompts of the domain, answered by all three models in the report, after a few general ones
    of ours. They show; they choose nothing."""
    retention: RetentionSection = RetentionSection()
    multiple_choice: tuple[MultipleChoiceSection, ...] = ()
    """Sets of multiple-choice questions."""

    tasks: tuple[TaskSection, ...] = ()
    """Tasks of lm-eval."""

    behavior: BehaviorSection | None = None
    """How the models answer; `null`, the default, does not look."""

    infilling: InfillingSection | None = None
    """Filling in the middle of code; also `toolkit infilling`."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.context_tokens >= self.window_tokens:
            raise ValueError(
                f"context_tokens: must be less than window_tokens, {self.window_tokens} (got "
                f"{self.context_tokens}); what a window sees again leaves nothing to score"
            )
        choice_names = [section.name for section in self.multiple_choice]
        for choice_name in choice_names:
            if choice_names.count(choice_name) > 1:
                raise ValueError(f"multiple_choice: the name {choice_name!r} stands twice")
        return self


def identity_of_evaluation(section: EvaluateSection) -> dict[str, object]:
    """The settings that the figures of a merge depend on, but for whose domain a set is."""
    values: dict[str, object] = section.model_dump(
        mode="json",
        exclude={
            "multiple_choice": {"__all__": {"specialist"}},
            "tasks": {"__all__": {"specialist"}},
        },
    )
    # What is not used is left out, so that stages from before there was such a setting keep their
    # identity.
    for name in ("behavior", "infilling"):
        if values[name] is None:
            del values[name]
    choice_values = values["multiple_choice"]
    assert isinstance(choice_values, list)  # noqa: S101  (tells the type checker)
    for choice in choice_values:
        if choice["split_field"] is None:
            del choice["split_field"]
    return values
