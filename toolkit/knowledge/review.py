"""Files that a person reads and strikes in: JSONL that the recipe names, and a page to tick in.

Whoever strikes a question sets its `struck` to true, in the file or on the page, which then gives
the file back. What was struck stays struck when questions are written again.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.errors import EvaluationError
from toolkit.json_lines import iterate_rows
from toolkit.progress import say
from toolkit.stage import free_name, write_atomically

_ADVICE = "mend the line, or move the file away to have it written anew"


def write_review(path: Path, rows: Sequence[Mapping[str, Any]], title: str) -> int:
    """Write questions and their page; struck ones of a former file stay struck.

    Args:
        path: of the JSONL file; the page stands beside it.
        rows: the questions; `struck` is set here.
        title: of the page.

    Returns:
        How many are struck.

    Raises:
        EvaluationError: the former file is none of questions.
    """
    former = read_review(path) if path.is_file() else {}
    new_rows = [{**row, "struck": bool(former.get(row["id"], {}).get("struck"))} for row in rows]
    ids = {row["id"] for row in new_rows}
    # A struck question whose fact is gone may come back with its document.
    new_rows += [row for name, row in former.items() if name not in ids and row.get("struck")]
    changed = [row for row in new_rows if row["id"] in former and _differs(row, former[row["id"]])]
    if changed:
        aside = free_name(path)
        with write_atomically(aside) as file:
            file.write(path.read_text(encoding="utf-8"))
        say(f"  {path}: {len(changed)} questions read otherwise than before; the former file is")
        say(f"  kept as {aside}")
    with write_atomically(path) as file:
        # A blank line where there are none: an empty file would be taken for one that was cut off.
        file.writelines([json.dumps(row, ensure_ascii=False) + "\n" for row in new_rows] or ["\n"])
    # The page carries all rows, so that it gives the file back whole without asking a server.
    with write_atomically(path.with_suffix(".html")) as file:
        file.write(review_page(path.name, new_rows, title))
    return sum(row["struck"] for row in new_rows)


def read_review(path: Path) -> dict[str, dict[str, Any]]:
    """Rows of a file of questions, by id.

    Raises:
        EvaluationError: a line is no question.
    """
    rows: dict[str, dict[str, Any]] = {}
    for where, row in iterate_rows(path, EvaluationError, _ADVICE):
        name, struck = row.get("id"), row.get("struck", False)
        if not isinstance(name, str) or not isinstance(row.get("question"), str):
            raise EvaluationError(f"{where}: is no question (no id, or no question); {_ADVICE}.")
        if not isinstance(struck, bool):
            raise EvaluationError(f"{where}: struck must be true or false (got {struck!r}).")
        if name in rows:
            raise EvaluationError(f"{where}: the id {name!r} stands twice; {_ADVICE}.")
        rows[name] = row
    return rows


def _differs(row: Mapping[str, Any], former: Mapping[str, Any]) -> bool:
    return any(row.get(key) != former.get(key) for key in ("question", "choices", "answer"))


def review_page(file_name: str, rows: Sequence[Mapping[str, Any]], title: str) -> str:
    """A page with every question, a box to strike each, and a button that gives the file back."""
    items = "\n".join(_item(row) for row in rows)
    # `<` would end the script early wherever a text holds `</script>`.
    data = json.dumps(list(rows), ensure_ascii=False).replace("<", "\\u003c")
    return _PAGE.format(
        title=html.escape(title), items=items, data=data, file=json.dumps(file_name)
    )


def _item(row: Mapping[str, Any]) -> str:
    choices = "".join(
        f"<li{' class=right' if number == row.get('answer') else ''}>{_text(choice)}</li>"
        for number, choice in enumerate(row.get("choices", ()))
    )
    kind, split, document, passage = (
        _text(row.get(key, "")) for key in ("kind", "split", "document", "passage")
    )
    ticked = " checked" if row["struck"] else ""
    return (
        f'<article><label><input type=checkbox data-id="{_text(row["id"])}"{ticked}> strike'
        f"</label> <small>{kind} · {split} · {document}</small>"
        f"<pre>{_text(row['question'])}</pre><ol type=A>{choices}</ol>"
        f"<details><summary>the passage</summary><pre>{passage}</pre></details></article>"
    )


def _text(value: object) -> str:
    return html.escape(str(value))


_PAGE = """<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui; max-width: 46rem; margin: 2rem auto; padding: 0 1rem }}
article {{ border-top: 1px solid #8884; padding: 1rem 0 }}
article:has(input:checked) {{ opacity: .45 }}
pre {{ white-space: pre-wrap; font: inherit }}
.right {{ font-weight: 700 }}
header {{ position: sticky; top: 0; background: Canvas; padding: .5rem 0 }}
</style>
<header><h1>{title}</h1><button>save the file</button> <span></span></header>
<p>Strike what cannot be answered without guessing, asks for nothing worth knowing, or has more than
one right option. Put the saved file in place of the one beside this page.</p>
{items}
<script>
const rows = {data};
const boxes = [...document.querySelectorAll("input[data-id]")];
const show = () => {{
  const struck = boxes.filter((box) => box.checked).length;
  document.querySelector("span").textContent = `${{struck}} of ${{boxes.length}} struck`;
}};
document.addEventListener("change", show);
show();
document.querySelector("button").addEventListener("click", () => {{
  const struck = new Map(boxes.map((box) => [box.dataset.id, box.checked]));
  const lines = rows.map((row) => JSON.stringify({{ ...row, struck: struck.get(row.id) }}) + "\\n");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(lines, {{ type: "application/jsonl" }}));
  link.download = {file};
  link.click();
}});
</script>
</html>
"""
