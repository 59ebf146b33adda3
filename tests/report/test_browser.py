"""The page in a real browser, without a display: no errors, every chart alive, fit for a phone."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.outcomes import AGAIN, ANSWERS, MERGE_YAML, make_results, training_rows
from toolkit.report.page import write_page

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")

Open = Callable[[Path], tuple[str, list[str]]]

NUM_CHARTS = 14
NUM_COLUMNS = 8


@pytest.fixture
def open_page(tmp_path: Path) -> Open:
    """Open a file; its document after its scripts ran, and what was said on the console."""

    def run(path: Path) -> tuple[str, list[str]]:
        command = [
            CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,900",
            "--virtual-time-budget=3000", "--enable-logging=stderr", "--dump-dom", path.as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
        return done.stdout, re.findall(r"CONSOLE[^\]]*\] (.*)", done.stderr)

    return run


@pytest.fixture
def report(tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    write_page(
        make_results(),
        path,
        merge_yaml=MERGE_YAML,
        training=training_rows(),
        answers=ANSWERS,
        again=AGAIN,
    )
    return path


def test_no_errors_and_every_chart_alive(report: Path, open_page: Open):
    document, console = open_page(report)
    assert console == []
    # The script gave each chart its cursor and words, and each title of the table its button.
    assert document.count('class="cursor"') == document.count('class="plot') == NUM_CHARTS
    assert document.count('class="tip"') == NUM_CHARTS
    assert len(re.findall(r"<th scope=\"col\"><button>", document)) == NUM_COLUMNS
    assert report.stat().st_size < 3_000_000


def test_a_foreign_script_or_picture_is_refused(report: Path, open_page: Open):
    """The page's own rule stops what might slip in; this also shows that the console is heard."""
    foreign = "<script>document.title = 'taken'</script><img src='https://example.org/x.png'>"
    report.write_text(report.read_text().replace("</main>", f"{foreign}</main>"))
    document, console = open_page(report)
    assert "<title>taken" not in document
    assert len([line for line in console if "Content Security Policy" in line]) == 2


PROBE = """
const found = {}, charts = [...document.querySelectorAll(".plot")];
function send(node, kind, x, y, type = "mouse") {
  const place = {clientX: x, clientY: y, pointerType: type, bubbles: true};
  node.dispatchEvent(new PointerEvent(kind, place));
}
const shown = chart => {
  const tip = chart.querySelector(".tip");
  return tip.style.display ? "" : tip.textContent;
};
found.width = document.documentElement.scrollWidth - document.documentElement.clientWidth;
found.sizes = charts.map(chart => chart.querySelector("svg").getBoundingClientRect().width);
found.empty = charts.filter(chart => !chart.querySelector(".mark, .line, .bars")).length;
found.tips = charts.map(chart => {
  const box = chart.querySelector("svg").getBoundingClientRect();
  const [x, y, words] = JSON.parse(chart.dataset.marks)[1];
  const at = [box.left + x / 100 * box.width, box.top + y / 100 * box.height];
  send(chart, "pointermove", ...at);
  const pointed = shown(chart) !== "";
  const tip = chart.querySelector(".tip").getBoundingClientRect();
  const within = tip.left >= 0 && tip.right <= document.documentElement.clientWidth;
  send(chart, "pointerleave", ...at);
  const left = shown(chart) === "";
  send(chart, "pointerdown", ...at, "touch");
  send(chart, "pointerleave", ...at, "touch");
  const tapped = shown(chart) !== "";
  send(document.body, "pointerdown", 0, 0, "touch");
  chart.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight"}));
  chart.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight"}));
  const keyed = shown(chart);
  chart.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape"}));
  return {pointed, within, left, tapped, keyed: keyed !== "", gone: shown(chart) === ""};
});
const table = document.querySelector("table.sortable");
const column = index => [...table.tBodies[0].rows].map(row => row.cells[index].textContent);
const buttons = [...table.querySelectorAll("button")];
buttons[2].click(); found.up = column(2);
buttons[2].click(); found.down = column(2);
found.sort = table.querySelector("[aria-sort]").ariaSort;
buttons[0].click(); found.names = column(0);
parent.postMessage(JSON.stringify(found), "*");
"""


@pytest.mark.parametrize("width", [360, 1100])
def test_pointer_finger_keys_and_sorting(report: Path, tmp_path: Path, open_page: Open, width: int):
    text = re.sub(r"<meta http-equiv[^>]*>", "", report.read_text())  # lets the probe in
    probed = tmp_path / "probed.html"
    probed.write_text(text.replace("</body>", f"<script>{PROBE}</script></body>"))
    frame = tmp_path / "frame.html"
    frame.write_text(
        f"<body><iframe src='probed.html' style='width:{width}px;height:800px;border:0'></iframe>"
        "<script>onmessage = event => { document.body.textContent = event.data; }</script>"
    )
    document, console = open_page(frame)
    assert console == []
    body = re.search(r"<body>(\{.*\})</body>", document, re.DOTALL)
    assert body, document[:500]
    found: dict[str, Any] = json.loads(html.unescape(body[1]))
    assert found["width"] == 0  # the page itself never scrolls sideways
    assert len(found["sizes"]) == NUM_CHARTS
    assert min(found["sizes"]) > 200
    assert found["empty"] == 0
    for number, tip in enumerate(found["tips"]):
        assert all(tip.values()), (number, tip)
    known = [float(words) for words in found["up"] if words]
    assert len(known) == 23
    assert known == sorted(known)
    assert [float(words) for words in found["down"] if words] == known[::-1]
    assert found["sort"] == "descending"
    names = found["names"]
    assert (
        names.index("linear alpha=0.2")
        < names.index("linear alpha=0.9")
        < names.index("slerp t=0.5")
    )
