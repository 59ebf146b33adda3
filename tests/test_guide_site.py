"""The guide as a site: it builds without a broken link and fetches nothing when it is read."""

from __future__ import annotations

import doctest
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_nothing_is_fetched_to_read_it(site: Path):
    loading = re.compile(
        r"<(?:script|img|iframe|source|link(?![^>]*rel=.?canonical))\b[^>]*?(?:src|href)=.?(?:https?:)?//[^\s>]+"
    )
    for page in site.rglob("*.html"):
        found = loading.findall(page.read_text(encoding="utf-8"))
        assert not found, f"{page.name}: {found}"


def test_links_work_from_a_folder(site: Path):
    """A folder's address needs its index.html, and paths must be relative."""
    for page in site.rglob("*.html"):
        if page.name == "404.html":  # only a server shows it
            continue
        for target in re.findall(r'(?:href|src)="?([^"\s>]+)', page.read_text(encoding="utf-8")):
            if re.match(r"[a-z]+:|#|//", target) or target == ".":
                continue
            path = (page.parent / target.split("#")[0].split("?")[0]).resolve()
            assert path.is_file(), f"{page.name}: {target}"


def test_tools_and_figures_stay_out_of_it(site: Path):
    assert not (site / "tools").exists()
    assert not (site / "figures").exists()


def test_charts_are_up_to_date():
    script = ROOT / "docs" / "tools" / "pictures.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_examples_in_the_tools():
    tool = runpy.run_path(str(ROOT / "docs" / "tools" / "reference.py"))
    failed = doctest.DocTestRunner()
    for test in doctest.DocTestFinder().find(tool["argument_words"], "words", globs=tool):
        assert test.examples
        assert failed.run(test).failed == 0


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
def test_search_works_in_a_page_opened_from_a_folder(site: Path, tmp_path: Path):
    command = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=8000",
        "--enable-logging=stderr", "--dump-dom", f"{(site / 'index.html').as_uri()}?q=retention",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    assert re.search(r"md-search-result__meta[^>]*>[1-9]\d* matching document", done.stdout)
    assert not re.findall(r"CONSOLE[^\]]*\] (.*)", done.stderr)
