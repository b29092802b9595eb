#!/usr/bin/env python3
"""The picture of the demo's page in the README: runs the demo where no run is given, and needs a
Chromium on the path.

python benchmarks/picture.py
"""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro
from playwright.sync_api import sync_playwright

from smda_jax.cli import main

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Picture:
    """What to picture."""

    run: Path | None = None
    """Run folder with its page; default: the demo, run now."""
    out: Path = ROOT / "benchmarks" / "results" / "page.png"
    """Where the picture goes."""


def take(c: Picture) -> None:
    """Opens the page as a reader would, and photographs the finding and the gaps."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("picture: needs a Chromium on the path")
    with tempfile.TemporaryDirectory() as place, sync_playwright() as play:
        run = c.run or Path(place) / "demo"
        if c.run is None:
            main(["demo", "--validate", "--out", str(run)])
        browser = play.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        # The page lets no script run but its own.
        page = browser.new_page(viewport={"width": 1180, "height": 1500}, bypass_csp=True)
        page.goto(f"file://{(run / 'report.html').resolve()}")
        # The first screen and the figure of gaps, without what stands between them.
        page.add_style_tag(
            content=(
                "header.bar nav, details, .scroll, .scroll + * { display: none } "
                "#policy, #validation, #plot-shifts { display: none } "
                "#experiment .note + .note { display: none } "
                ".row { display: none }"
            )
        )
        page.wait_for_function("document.querySelectorAll('.main-svg').length >= 2")
        page.wait_for_timeout(1500)
        page.screenshot(path=c.out)
        browser.close()
    print(c.out)


if __name__ == "__main__":
    take(tyro.cli(Picture))
