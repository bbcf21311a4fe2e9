# ruff: noqa: INP001 - a script, not a package
"""Take the pictures of the README: two parts of the report of a real run of examples/heart.toml."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

import hansa

ROOT = Path(__file__).parents[1]
WIDTH = 1100
MARGIN = 16
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PARTS = {"report.png": ("header", "header ul"), "report-rounds.png": ("#curves h2", "#curves .grid.three")}
"""Picture -> where in the report it starts, and where it ends."""


def main(folder: Path) -> None:
    """Run the plan in a temporary folder and photograph its report."""
    browser = shutil.which("chromium")
    if browser is None:
        sys.exit("Chromium is missing: sudo apt-get install chromium")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        result = hansa.run(hansa.read_plan(ROOT / "examples" / "heart.toml"), out=Path(temporary) / "run")
        opened = playwright.chromium.launch(executable_path=browser, args=list(FLAGS))
        page = opened.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme="light")
        page.goto(result.report.resolve().as_uri())
        for name, (start, end) in PARTS.items():
            first, last = (page.locator(part).first.bounding_box() for part in (start, end))
            if first is None or last is None:
                sys.exit(f"The report has no {start} or {end} any more: correct PARTS.")
            top = max(0, first["y"] - MARGIN)
            clip = {"x": 0, "y": top, "width": WIDTH, "height": last["y"] + last["height"] + MARGIN - top}
            page.screenshot(path=folder / name, clip=clip, full_page=True)
            print(folder / name)  # noqa: T201 - a command
        opened.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
