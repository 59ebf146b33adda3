"""Facts of English texts, found by patterns: what was said, and which part of it can be asked for.

A fact is a sentence (or a row of a table read out as one) with one place left blank. What fills the
blank has a form, such as `$### million`, and answers of one form stand in for each other.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from toolkit.data.config import SplitName
from toolkit.data.split import stable_unit
from toolkit.knowledge.documents import SplitDocument
from toolkit.knowledge.passages import (
    NamedTable,
    Paragraph,
    is_value,
    split_blocks,
    split_sentences,
)
from toolkit.stage import hash_json

FactKind = Literal["amount", "percent", "number", "date", "name", "term", "table", "cloze", "free"]
KINDS: tuple[FactKind, ...] = (
    "amount", "percent", "number", "date", "name", "term", "table", "cloze",
)  # fmt: skip
"""In the order in which a document's facts are taken in turn; `free` ones a model wrote."""

BLANK = "____"

_MONTH = "(?:January|February|March|April|May|June|July|August|September|October|November|December)"
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
_PATTERNS: dict[FactKind, re.Pattern[str]] = {
    "amount": re.compile(
        rf"(?<![\w$€£])[$€£]\s?{_DIGITS}(?:\s(?:thousand|million|billion|trillion))?\b"
    ),
    "percent": re.compile(
        rf"(?<![\w$€£.,]){_DIGITS}\s?(?:%|percentage points?|percent|basis points?)"
    ),
    "date": re.compile(rf"\b{_MONTH} (?:\d{{1,2}}, )?(?:19|20)\d\d\b"),
    # Years count nothing, and some words in `s` name nothing that is counted: was, basis, plus.
    "number": re.compile(
        rf"(?<![\w$€£.,/-])(?!(?:19|20)\d\d\b){_DIGITS}\s"
        r"(?!basis|was\b|is\b|as\b|plus\b|less\b|thus\b)[a-z]{3,}s(?![\w-])"
    ),
    "term": re.compile(r"(?<=[\"“])(?=[^\"”]*[A-Za-z]{3})[A-Za-z][^\"“”,]{2,40}(?=,?[\"”])"),
}
_TERM_CUE = re.compile(
    r"(?:referred to as|known as|called|\((?:the|our|collectively,?(?: the)?)?)\s*"
    r"(?:the |our )?[\"“]$",
    re.IGNORECASE,
)
_AFTER_NAME = re.compile(r"\b[A-Z][\w'’&.-]*\s$")
"""A number or a name there belongs to what stands before it: Note 2, North America."""

_NAME_WORD = r"[A-Z][A-Za-z0-9&.-]*[A-Za-z0-9]"
# Not at the beginning of a sentence, where every word has a capital.
_NAME = re.compile(
    rf"(?<![.!?:“\"(]\s)(?<!^)(?<![\w-]){_NAME_WORD}"
    rf"(?:\s(?:(?:of|for|the|de|von|van)\s)?(?:&\s)?{_NAME_WORD})*(?![\w-])"
)
_NO_NAMES = frozenset(
    [
        "Monday",
        "Tuesday",
        "Wednesday",
        "Thursday",
        "Friday",
        "Saturday",
        "Sunday",
        "Company",
        "Corporation",
        "Board",
        "Committee",
        "Management",
        "President",
        "Chairman",
        "Director",
        "Index",
        "Topic",
        "Topics",
        "Part",
        "Item",
        "Note",
        "Exhibit",
        "Section",
        "Appendix",
        "Table",
        "Figure",
        "Chapter",
        "Agreement",
        "Plan",
        "Act",
        "Notes",
        "Items",
    ]
)
_UNCLEAR_BEGINNING = re.compile(
    r"(?:It|They|This|That|These|Those|Such|He|She|His|Her|Its|Their|There|Note|See|Refer|However"
    r"|In addition|Additionally|As a result|Accordingly|Further|Moreover|Of)\b"
)
_FEWEST_WORDS, _MOST_WORDS = 8, 55
_FEWEST_LEAD_WORDS = 4
_LEAD_WORDS = 14

_MOST_DOCUMENTS = 0.2
"""An answer that stands in a larger share of its group's documents is no fact of one of them, such
as the day on which the year ended."""


@dataclass(frozen=True)
class Fact:
    """A sentence with a blank, and what belongs there.

    Attributes:
        id: the same wherever the same is asked of the same document.
        kind: of the answer.
        form: answers of one form can stand in for each other.
        answer: what fills the blank.
        blanked: the sentence with the blank.
        lead: what stands right before the blank, which an answer continues.
        sentence: as the document has it.
        heading: that it stands below; may be empty.
        document, group, source, split: where it stands.
        passage: the part of the document around it.
        rivals: wrong answers that a model wrote beside the question; empty where patterns found it.
    """

    id: str
    kind: FactKind
    form: str
    answer: str
    blanked: str
    lead: str
    sentence: str
    heading: str
    document: str
    group: str
    source: str
    split: SplitName
    passage: str
    rivals: tuple[str, ...] = ()


class Corpus:
    """What is known of all documents together: who writes which word how.

    Args:
        documents: of all splits.
    """

    def __init__(self, documents: Sequence[SplitDocument]) -> None:
        self.lower_words: set[str] = set()
        self.word_documents: Counter[str] = Counter()
        self._texts_by_group: dict[str, list[str]] = defaultdict(list)
        self._everywhere: dict[tuple[str, str], bool] = {}
        for one in documents:
            words = re.findall(r"[A-Za-z][A-Za-z'’-]*", one.document.text)
            self.lower_words.update(word for word in words if word.islower())
            self.word_documents.update({word for word in words if word.islower()})
            self._texts_by_group[one.document.group].append(one.document.text)
        self.num_documents = len(documents)

    def is_proper(self, name: str) -> bool:
        """Whether some word of a name is nowhere written small."""
        words = re.findall(r"[A-Za-z]{2,}", re.sub(r"['’]s?\b", "", name))
        return any(word.lower() not in self.lower_words and not word.isupper() for word in words)

    def is_everywhere(self, answer: str, group: str) -> bool:
        """Whether an answer stands in many documents of a group."""
        texts = self._texts_by_group[group]
        # Of a small group the share would be less than a document or two.
        most = max(3.0, _MOST_DOCUMENTS * len(texts))
        if (answer, group) not in self._everywhere:
            holding_texts = (text for text in texts if answer in text)
            # No more is looked for than tells it: one text more than may hold it.
            num_holding = sum(1 for _ in itertools.islice(holding_texts, math.floor(most) + 1))
            self._everywhere[answer, group] = num_holding > most
        return self._everywhere[answer, group]


def find_facts(
    one: SplitDocument,
    corpus: Corpus,
    *,
    seed: int,
    passage_characters: int,
    subject: str = "",
) -> list[Fact]:
    """All facts of a document, at most one of each sentence, in the order that they are taken in.

    Args:
        one: the document.
        corpus: all documents.
        seed: of the recipe.
        passage_characters: length of the passage that is put beside a question.
        subject: whom the document is about; its own name is not asked for.
    """
    text = one.document.text
    paragraphs, tables = split_blocks(text)

    def make(
        kind: FactKind, form: str, answer: str, lead: str, sentence: str, blanked: str, place: int,
        heading: str,
    ) -> Fact:  # fmt: skip
        return Fact(
            id=hash_json([one.document.id, sentence, answer])[:16],
            kind=kind,
            form=form,
            answer=answer,
            blanked=blanked,
            lead=lead,
            sentence=sentence,
            heading=heading,
            document=one.document.id,
            group=one.document.group,
            source=one.document.source,
            split=one.split,
            passage=passage_around(text, place, passage_characters),
        )

    facts = [
        fact
        for paragraph in paragraphs
        for fact in _sentence_facts(paragraph, one, corpus, make, seed, subject)
    ]
    facts += [fact for table in tables for fact in _table_facts(table, make, seed)]
    facts = [fact for fact in facts if not corpus.is_everywhere(fact.answer, fact.group)]
    return _in_turn(facts, seed)


def _in_turn(facts: Sequence[Fact], seed: int) -> list[Fact]:
    """Facts of all kinds in turn, those of one kind by hash; words left out come last, as every
    sentence has some."""
    by_kind: dict[FactKind, list[Fact]] = defaultdict(list)
    for fact in {fact.id: fact for fact in facts}.values():
        by_kind[fact.kind].append(fact)
    places = []
    for kind, members in by_kind.items():
        members.sort(key=lambda fact: stable_unit(seed, "fact", fact.id))
        turn_start = 1000 if kind == "cloze" else 0
        places += [
            (turn_start + turn, stable_unit(seed, "kind", fact.id), fact)
            for turn, fact in enumerate(members)
        ]
    return [fact for _, _, fact in sorted(places, key=lambda place: place[:2])]


MakeFact = Callable[[FactKind, str, str, str, str, str, int, str], Fact]


def _sentence_facts(
    paragraph: Paragraph,
    one: SplitDocument,
    corpus: Corpus,
    make: MakeFact,
    seed: int,
    subject: str,
) -> Iterator[Fact]:
    for sentence in split_sentences(paragraph.text):
        if not is_clear(sentence):
            continue
        # An answer needs words before it to go on from, and must not stand in the sentence twice:
        # it could be read off the rest.
        answers = [
            (kind, form, start, stop)
            for kind, form, start, stop in _answers(sentence, corpus, subject)
            if len(sentence[:start].split()) >= _FEWEST_LEAD_WORDS
            and sentence.count(sentence[start:stop]) == 1
        ]
        if not answers:
            continue
        # A word left out says least, so it is taken where a sentence has nothing else.
        plain = [answer for answer in answers if answer[0] != "cloze"] or answers
        draw = stable_unit(seed, "blank", one.document.id, sentence)
        kind, form, start, stop = plain[int(draw * len(plain))]
        before, answer, after = sentence[:start], sentence[start:stop], sentence[stop:]
        lead = " ".join(before.split()[-_LEAD_WORDS:]).rstrip('"“ ')
        if len(before.split()) > _LEAD_WORDS:
            lead = f"… {lead}"
        place = paragraph.start + paragraph.text.find(sentence)
        yield make(
            kind, form, answer, lead, sentence, f"{before}{BLANK}{after}", place, paragraph.heading
        )


def is_clear(sentence: str) -> bool:
    """Whether a sentence can be understood alone: whole, not too long, about something named in it.

    >>> is_clear("Inventory reserves were $201 million at the end of the year."), is_clear("It is.")
    (True, False)
    """
    words = sentence.split()
    return (
        _FEWEST_WORDS <= len(words) <= _MOST_WORDS
        and sentence[0].isupper()
        and sentence.count('"') % 2 == 0
        and sentence.count("“") == sentence.count("”")
        and sentence.rstrip('"”’)')[-1:] == "."
        and not _UNCLEAR_BEGINNING.match(sentence)
    )


def _answers(
    sentence: str, corpus: Corpus, subject: str
) -> Iterator[tuple[FactKind, str, int, int]]:
    """Kind, form and place of whatever in a sentence may be left blank."""
    taken: list[tuple[int, int]] = []
    for kind, pattern in _PATTERNS.items():
        for match in pattern.finditer(sentence):
            before = sentence[: match.start()]
            if kind == "term" and not _TERM_CUE.search(before):
                continue
            if (kind == "number" and _AFTER_NAME.search(before)) or _overlaps(match, taken):
                continue
            taken.append(match.span())
            yield kind, form_of(kind, match.group()), *match.span()
    for match in _NAME.finditer(sentence):
        name = match.group()
        if _overlaps(match, taken) or _AFTER_NAME.search(sentence[: match.start()]):
            continue
        if (
            len(name) < 4
            or name in subject
            or name.split()[0] in _NO_NAMES
            or re.match(_MONTH, name)
            or not corpus.is_proper(name)
        ):
            continue
        yield "name", form_of("name", name, sentence[: match.start()]), *match.span()
    yield from _words_left_out(sentence, corpus)


def _overlaps(match: re.Match[str], places: Sequence[tuple[int, int]]) -> bool:
    return any(start < match.end() and match.start() < stop for start, stop in places)


def _words_left_out(sentence: str, corpus: Corpus) -> Iterator[tuple[FactKind, str, int, int]]:
    """The last word of a sentence, where few documents have it."""
    match = re.search(r"(?<=[a-z] )[a-z]{6,}(?=\.$)", sentence)
    if match is None:
        return
    if corpus.word_documents[match.group()] <= max(2, 0.03 * corpus.num_documents):
        yield "cloze", form_of("cloze", match.group()), *match.span()


def form_of(kind: FactKind, answer: str, before: str = "") -> str:
    """What answers that may stand in for each other have in common; names stand behind the same
    word, as places do behind `in` and makers behind `by`.

    >>> form_of("amount", "$201 million"), form_of("number", "120 days")
    ('amount $### million', 'number ### days')
    """
    if kind == "name":
        word_before = before.split()[-1:] or [""]
        return f"name {min(len(answer.split()), 3)} {word_before[0].lower()}"
    if kind == "term":
        return "term"
    if kind == "cloze":
        return f"cloze {answer[-2:]}"
    return f"{kind} " + re.sub(r"\d", "#", re.sub(_MONTH, "month", answer))


def broader_form(form: str) -> str:
    """A form that more answers have: any number of digits, any number of words.

    >>> broader_form("amount $#,###.# million")
    'amount $# million'
    """
    if "#" in form:
        return re.sub(r"#[#,]*(?:\.#+)?", "#", form)
    kind, *more = form.split(" ")
    return f"{kind} {more[-1]}" if kind == "name" else kind


def _table_facts(table: NamedTable, make: MakeFact, seed: int) -> Iterator[Fact]:
    """One cell of each row."""
    for label, cells in table.rows:
        values = [
            (column, cell)
            for column, cell in zip(table.columns, cells, strict=True)
            if is_value(cell) and sum(map(str.isdigit, cell)) >= 2
        ]
        if not values or len(label.split()) > 14 or is_value(label):
            continue
        column, answer = values[int(stable_unit(seed, "cell", table.title, label) * len(values))]
        sentence = read_out(table, label, column, answer)
        lead = sentence.removesuffix(f"{answer}.").rstrip()
        blanked = f"{lead} {BLANK}."
        yield make(
            "table", form_of("table", answer), answer, lead, sentence, blanked, table.start,
            table.heading,
        )  # fmt: skip


def read_out(table: NamedTable, label: str, column: str, cell: str) -> str:
    """A cell as a sentence.

    >>> table = NamedTable("Net Sales", "2. Net Sales", "millions", ("2025",), (), 0)
    >>> read_out(table, "Beauty", "2025", "$13,214")
    'In the table "Net Sales" (millions), the entry for "Beauty" under "2025" is $13,214.'
    """
    unit = f" ({table.unit})" if table.unit else ""
    return (
        f'In the table "{table.title}"{unit}, the entry for "{label}" under "{column}" is {cell}.'
    )


def passage_around(text: str, place: int, characters: int) -> str:
    """Whole lines of a text around a place, of so many characters in all, or a little more."""
    if len(text) <= characters:
        return text
    start = max(0, min(place - characters // 3, len(text) - characters))
    if start:
        # Never behind the place itself, which may stand early in a long line.
        start = text.rfind("\n", 0, min(start, place) + 1) + 1
    stop = text.find("\n", max(start + characters, place))
    passage = text[start : stop if stop >= 0 else len(text)]
    if len(passage) <= 2 * characters:
        return passage.strip()
    # A line as long as a document: cut at words.
    start = max(start, place - characters // 3)
    passage = text[start : start + characters]
    return passage[passage.find(" ") + 1 : passage.rfind(" ")].strip()


def answers_by_form(facts: Sequence[Fact]) -> Mapping[str, list[str]]:
    """Answers of each form and of each broader one, each once, in the order of the facts."""
    pools: dict[str, dict[str, None]] = defaultdict(dict)
    for fact in facts:
        for form in (fact.form, broader_form(fact.form)):
            pools[form][fact.answer] = None
    return {form: list(answers) for form, answers in pools.items()}
