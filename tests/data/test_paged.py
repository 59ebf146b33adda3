from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from tests.conftest import paragraph
from tests.helpers.paged_files import make_docx, make_epub, make_pdf, make_pptx
from toolkit.data import paged_process
from toolkit.data.config import SourceSection
from toolkit.data.formats import NOTE, Faults
from toolkit.data.paged import PIECE_WORDS, join_lines, read_paged
from toolkit.data.paged_process import read_paged_apart
from toolkit.data.sources import read_documents
from toolkit.errors import DataError


def text_of(number: int, num_words: int) -> str:
    """So many made-up words, as one sentence that ends."""
    return " ".join(paragraph(number, num_words).split()[:num_words]).rstrip(".") + "."


def lines_of(text: str, width: int = 80) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width)


def test_paragraphs_are_put_together_again():
    first, second = paragraph(1, 60), paragraph(2, 60)
    (piece,) = read_paged(make_pdf([lines_of(first) + lines_of(second)]), "a.pdf", "pdf").pieces
    assert piece.text.split("\n\n") == [first, second]


def test_a_sentence_goes_on_on_the_next_page():
    words = "the words of one sentence that is long " * 6
    page = lines_of(f"It says {words}".strip())
    pages = [page, lines_of(f"and it goes on {words}".strip() + ".")]
    (piece,) = read_paged(make_pdf(pages), "a.pdf", "pdf").pieces
    assert "long and it goes on" in piece.text


def test_running_heads_and_page_numbers_are_left_out():
    pages = [
        ["Annual Report of Example Corp", *lines_of(text_of(n, 80)), str(n)] for n in range(1, 6)
    ]
    (piece,) = read_paged(make_pdf(pages), "a.pdf", "pdf").pieces
    assert "Annual Report" not in piece.text
    assert not any(line.isdigit() for line in piece.text.splitlines())


def test_long_documents_become_pieces_that_know_their_page():
    pages = [lines_of(text_of(n, 400)) for n in range(10)]
    document = read_paged(make_pdf(pages), "a.pdf", "pdf")
    assert [piece.page for piece in document.pieces] == [1, 5, 9]
    sizes = [len(piece.text.split()) for piece in document.pieces]
    assert all(PIECE_WORDS <= size <= PIECE_WORDS + 400 for size in sizes[:-1])


@pytest.mark.parametrize(
    ("page", "paragraphs"),
    [
        ("A hyphen\x02ated word", ["A hyphenated word"]),
        ("First line of the text\r\nsecond line of it\r\n\r\nAnother", 2),
        ("A heading\r\n" + "a full line of text " * 4 + "\r\n" + "a full line of text " * 4, 2),
        ("", []),
    ],
)
def test_lines_to_paragraphs(page: str, paragraphs: list[str] | int):
    found = join_lines(page)
    assert len(found) == paragraphs if isinstance(paragraphs, int) else found == paragraphs


def test_a_word_file_with_a_table():
    data = make_docx([paragraph(1, 30)], [["Net sales", "10"], ["Costs", "7"]])
    (piece,) = read_paged(data, "a.docx", "docx").pieces
    assert piece.text == paragraph(1, 30) + "\n\nNet sales | 10\nCosts | 7"


def test_slides_with_notes():
    data = make_pptx([("First slide", "what is said"), ("second slide", "and more")])
    (piece,) = read_paged(data, "a.pptx", "pptx").pieces
    assert piece.text.split("\n\n") == ["First slide", "what is said", "second slide", "and more"]


def test_chapters_in_the_order_of_the_book():
    data = make_epub(["The first chapter.", "The second.", "The third."])
    (piece,) = read_paged(data, "a.epub", "epub").pieces
    assert piece.text.split("\n\n") == ["The first chapter.", "The second.", "The third."]


def test_a_folder_of_all_kinds_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "documents" / "client"
    folder.mkdir(parents=True)
    (folder / "report.pdf").write_bytes(make_pdf([lines_of(text_of(n, 400)) for n in range(5)]))
    (folder / "contract.docx").write_bytes(make_docx([paragraph(8, 60)]))
    (folder / "talk.pptx").write_bytes(make_pptx([("Title", paragraph(9, 60))]))
    (folder / "book.epub").write_bytes(make_epub([paragraph(10, 60)]))
    (folder / "page.html").write_text(f"<p>{paragraph(11, 60)}</p>", encoding="utf-8")
    source = SourceSection.model_validate({"role": "domain", "files": ["documents"]})
    found = {document.id: document for document in read_documents("mine", source)}
    assert sorted(found) == [
        "mine/client/book",
        "mine/client/contract",
        "mine/client/page",
        "mine/client/report#p0001",
        "mine/client/report#p0005",
        "mine/client/talk",
    ]
    assert {document.group for document in found.values()} == {
        f"client/{name}" for name in ("book", "contract", "page", "report", "talk")
    }


OLD_OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


def broken_zip() -> bytes:
    return make_docx(["text"])[:-30]


def zip_bomb() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", bytes(80 << 20))
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.pdf", make_pdf([["text"]], is_encrypted=True), "is encrypted"),
        ("a.pdf", make_pdf([["some text"]])[:60], "is damaged, or no PDF"),
        ("a.pdf", make_pdf([[], []]), "2 pages and no text: they are pictures"),
        ("a.docx", broken_zip(), "is damaged: no zip archive"),
        ("a.docx", zip_bomb(), "unpack to more than"),
        (
            "a.docx",
            b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(100),
            "is encrypted, or in the format",
        ),
        ("a.docx", make_epub(["no document"]), "is damaged, or no Word document"),
        ("a.pptx", make_docx(["no slides"]), "is damaged, or no presentation"),
        ("a.epub", make_docx(["no book"]), "is damaged, or no EPUB"),
        ("a.docx", make_docx([]), "holds no text"),
        ("a.doc", b"any", "save it as .docx"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, data: bytes, words: str):
    (tmp_path / name).write_bytes(data)
    (tmp_path / "sound.txt").write_text(paragraph(1, 40), encoding="utf-8")
    files = [str(tmp_path / name), str(tmp_path / "sound.txt")]
    source = SourceSection.model_validate({"role": "domain", "files": files})
    with pytest.raises(DataError, match=words):
        list(read_documents("mine", source))
    if name.endswith(".doc"):
        return
    faults = Faults(skip=True)
    (document,) = read_documents("mine", source, faults)
    assert document.id == "mine/sound"
    assert faults.counts["damaged"] == 1
    assert words in faults.shown[0]


def test_pages_without_text_are_counted(tmp_path: Path):
    path = tmp_path / "half.pdf"
    path.write_bytes(make_pdf([lines_of(paragraph(1, 60)), [], []]))
    faults = Faults(skip=False)
    source = SourceSection.model_validate({"role": "domain", "files": [str(path)]})
    assert len(list(read_documents("mine", source, faults))) == 1
    assert faults.counts == {f"{NOTE}pages of pdf files hold no text (pictures or scans)": 2}


def test_a_file_that_takes_too_long_is_named(monkeypatch: pytest.MonkeyPatch):
    limits = {"PAGED_SECONDS": 0, "PAGED_BYTES": 4 << 30}
    monkeypatch.setattr(paged_process, "limit", lambda name: limits[name])
    paged_process._reader.stop()  # a process that only begins cannot answer at once
    with pytest.raises(DataError, match="more than 0 seconds"):
        read_paged_apart(make_pdf([["text"]]), "slow.pdf", "pdf")
    limits["PAGED_SECONDS"] = 60
    assert read_paged_apart(make_pdf([["text of a page"]]), "a.pdf", "pdf").num_pages == 1


def test_short_slides_and_chapters_keep_their_titles():
    titles = [f"Revenue 202{n}" for n in range(4)]
    (piece,) = read_paged(make_pptx([(title, "up 5 %") for title in titles]), "a", "pptx").pieces
    assert piece.text.split("\n\n") == [part for title in titles for part in (title, "up 5 %")]
    (piece,) = read_paged(make_pdf([[title] for title in titles]), "a.pdf", "pdf").pieces
    assert piece.text.split("\n\n") == titles
    (piece,) = read_paged(make_epub([f"{n}" for n in range(4)]), "a.epub", "epub").pieces
    assert piece.text.split() == ["0", "1", "2", "3"]


def test_line_breaks_of_slides_part_words():
    (piece,) = read_paged(make_pptx([("one\vtwo", "x")]), "a.pptx", "pptx").pieces
    assert piece.text.split("\n\n")[0] == "one two"


def test_chapters_with_escaped_and_relative_names():
    plain = make_epub(["A chapter of words."])
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(plain)) as book, zipfile.ZipFile(out, "w") as changed:
        for name in book.namelist():
            data = book.read(name).replace(b"href='1.xhtml'", b"href='../text/a%20b.xhtml'")
            changed.writestr("text/a b.xhtml" if name == "book/1.xhtml" else name, data)
    (piece,) = read_paged(out.getvalue(), "a.epub", "epub").pieces
    assert piece.text == "A chapter of words."
