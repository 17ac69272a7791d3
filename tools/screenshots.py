"""Pictures of the report for docs/: light, dark, narrow and printed, from runs that were really measured.

``python tools/screenshots.py REPORT.html`` drives a headless Chromium over ``tests/browser.py``; the page is made by
``llmopt report RESULTS --html REPORT.html``.  Every picture is at most 300 kB, and the script fails where one is not.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from browser import Page, chromium  # noqa: E402

MOST_BYTES = 300_000
A4_ACROSS = (1032, 730)  # CSS pixels within the margins of the page's print style


def pictures(page: Page, report: Path, out: Path) -> list[Path]:
    """One browser takes all of them; what stands in the middle of a picture is scrolled to, not cropped."""
    made = []

    def take(name: str, *, width: int, height: int, scheme: str = "light", to: str = "header", media: str = "") -> None:
        page.prefer(scheme, media="")
        page.open(report, width, height)
        page.prefer(scheme, media=media)
        page.do(f"document.querySelector({to!r}).scrollIntoView({{behavior: 'instant'}})")
        page.do("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        made.append(out / f"report-{name}.png")
        page.picture(made[-1])

    take("light", width=1280, height=1000)
    take("dark", width=1280, height=1000, scheme="dark", to="#chart-load, #chart-front")
    take("narrow", width=360, height=900)
    take("print", width=A4_ACROSS[0], height=A4_ACROSS[1], media="print")
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path, help="a page of llmopt report --html")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder of the pictures")
    options = parser.parse_args()
    with chromium() as page:
        made = pictures(page, options.report, options.out)
        complaints = page.complaints
    large = [file for file in made if file.stat().st_size > MOST_BYTES]
    for file in made:
        print(f"{file} {file.stat().st_size / 1e3:.0f} kB")
    for words in (*complaints, *(f"{file} is over {MOST_BYTES / 1e3:.0f} kB" for file in large)):
        print(words, file=sys.stderr)
    return 1 if complaints or large else 0


if __name__ == "__main__":
    sys.exit(main())
