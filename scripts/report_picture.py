# ruff: noqa: INP001 - a script, not a package
"""Take the picture of the README: the head of the report of a real run of examples/heart.toml."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import hansa

ROOT = Path(__file__).parents[1]
WIDTH, HEIGHT = 1280, 1000
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


def main(picture: Path) -> None:
    """Run the plan in a temporary folder and photograph its report."""
    browser = shutil.which("chromium")
    if browser is None:
        sys.exit("Chromium is missing: sudo apt-get install chromium")
    with tempfile.TemporaryDirectory() as temporary:
        result = hansa.run(hansa.read_plan(ROOT / "examples" / "heart.toml"), out=Path(temporary) / "run")
        picture.parent.mkdir(parents=True, exist_ok=True)
        command = [
            browser,
            *FLAGS,
            f"--user-data-dir={temporary}/browser",
            f"--window-size={WIDTH},{HEIGHT}",
            f"--screenshot={picture.resolve()}",
            result.report.resolve().as_uri(),
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=120)  # noqa: S603 - our own command
    print(picture)  # noqa: T201 - a command


if __name__ == "__main__":
    main(Path(sys.argv[1]))
