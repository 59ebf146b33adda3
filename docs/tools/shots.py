"""Pictures of the parts of a report, for the guide: each part alone, light and dark.

    python docs/tools/shots.py runs/finance/merge/report.html    # docs/pictures/report-*.png

Needs Chromium. A part that the report does not have is an error, since a page shows it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PICTURES = Path(__file__).parents[1] / "pictures"
WIDTH = 1000
PARTS = {
    "verdict": "nav, main {display: none}",
    "tests": "#test",
    "front": "#front",
    "sweep": "#sweep",
    "training": "#training",
    "documents": "#documents",
}


def main() -> None:
    report = Path(sys.argv[1]).read_text(encoding="utf-8")
    for name, wanted in PARTS.items():
        style = wanted
        if wanted.startswith("#"):
            if f'<section id="{wanted[1:]}"' not in report:
                ids = ", ".join(re.findall(r'<section id="([\w-]+)"', report))
                sys.exit(f"{sys.argv[1]}: has no part {wanted}; there are {ids}")
            style = f"header, nav, section:not({wanted}) {{display: none}}"
        rules = f"{style} body {{padding-top: 0; padding-bottom: 0; min-height: 0}}"
        rules += " section {margin-top: 0; border: 0}"
        # The height is asked of the page itself, in its title; the policy allows no other script.
        page = re.sub(r"<meta http-equiv=.Content-Security-Policy.[^>]*>", "", report)
        page = page.replace("</head>", f"<style>{rules}</style></head>")
        page = page.replace(
            "</body>",
            "<script>document.title = 'height ' + Math.ceil(document.body.getBoundingClientRect()"
            ".bottom)</script></body>",
        )
        for scheme in ("light", "dark"):
            shoot(page, PICTURES / f"report-{name}-{scheme}.png", scheme)


def shoot(page: str, out: Path, scheme: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.html"
        path.write_text(page, encoding="utf-8")
        command = [
            shutil.which("chromium") or "chromium", "--headless=new", "--no-sandbox",
            "--disable-gpu", "--no-first-run", "--hide-scrollbars",
            f"--user-data-dir={folder}/profile", "--virtual-time-budget=3000",
            f"--blink-settings=preferredColorScheme={int(scheme == 'light')}",
        ]  # fmt: skip
        asked = subprocess.run(
            [*command, f"--window-size={WIDTH},700", "--dump-dom", path.as_uri()],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        found = re.search(r"<title>height (\d+)", asked.stdout)
        if found is None:
            sys.exit(f"{out.name}: the page did not say its height")
        size = f"--window-size={WIDTH},{int(found.group(1)) + 12}"
        subprocess.run(
            [*command, size, f"--screenshot={out}", path.as_uri()], capture_output=True, check=True
        )
    print(f"{out.name}: {size.split(',')[1]} pixels high, {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
