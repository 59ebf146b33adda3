"""PDF and EPUB files by hand, Word and PowerPoint files by their libraries."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence


def make_pdf(pages: Sequence[Sequence[str]], *, is_encrypted: bool = False) -> bytes:
    """A PDF file with these lines on each page; an empty page draws a box and holds no text."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b""]
    font = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"
    objects.append(font)
    kids: list[str] = []
    for lines in pages:
        drawn = " T* ".join(f"({_escape(line)}) Tj" for line in lines)
        content = f"BT /F1 10 Tf 12 TL 72 760 Td {drawn} ET".encode("latin-1")
        if not lines:
            content = b"72 72 400 600 re f"
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content))
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R "
            b"/Resources << /Font << /F1 3 0 R >> >> >>" % len(objects)
        )
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>".encode()
    trailer = "/Root 1 0 R"
    if is_encrypted:
        key = "<" + "ab" * 32 + ">"
        objects.append(f"<< /Filter /Standard /V 1 /R 2 /O {key} /U {key} /P -4 >>".encode())
        trailer += f" /Encrypt {len(objects)} 0 R /ID [<{'cd' * 16}> <{'cd' * 16}>]"
    out = bytearray(b"%PDF-1.4\n")
    places = []
    for number, body in enumerate(objects, start=1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    out += f"trailer << /Size {len(objects) + 1} {trailer} >>\nstartxref\n{start}\n%%EOF\n".encode()
    return bytes(out)


def _escape(line: str) -> str:
    return line.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")


def make_epub(chapters: Sequence[str]) -> bytes:
    """A book with these chapters; its list names them in another order than their files have."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("mimetype", "application/epub+zip")
        archive.writestr(
            "META-INF/container.xml",
            "<container xmlns='urn:oasis:names:tc:opendocument:xmlns:container'><rootfiles>"
            "<rootfile full-path='book/content.opf'/></rootfiles></container>",
        )
        files = [f"{len(chapters) - n}.xhtml" for n in range(len(chapters))]
        items = "".join(f"<item id='c{n}' href='{name}'/>" for n, name in enumerate(files))
        order = "".join(f"<itemref idref='c{n}'/>" for n in range(len(files)))
        archive.writestr(
            "book/content.opf",
            f"<package xmlns='http://www.idpf.org/2007/opf'><manifest>{items}</manifest>"
            f"<spine>{order}</spine></package>",
        )
        for name, chapter in zip(files, chapters, strict=True):
            archive.writestr(f"book/{name}", f"<html><body><p>{chapter}</p></body></html>")
    return out.getvalue()


def make_docx(paragraphs: Sequence[str], rows: Sequence[Sequence[str]] = ()) -> bytes:
    """A Word file: paragraphs, then a table."""
    import docx

    document = docx.Document()
    for paragraph in paragraphs:
        document.add_paragraph(paragraph)
    if rows:
        table = document.add_table(rows=len(rows), cols=len(rows[0]))
        for number, row in enumerate(rows):
            for column, text in enumerate(row):
                table.cell(number, column).text = text
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def make_pptx(slides: Sequence[tuple[str, str]]) -> bytes:
    """A presentation: title and notes of each slide."""
    import pptx

    presentation = pptx.Presentation()
    for title, notes in slides:
        slide = presentation.slides.add_slide(presentation.slide_layouts[5])
        slide.shapes.title.text = title
        slide.notes_slide.notes_text_frame.text = notes
    out = io.BytesIO()
    presentation.save(out)
    return out.getvalue()
