"""One of two replicas is killed under load: what is lost, how soon it is over, when the alert fires.

    python benchmarks/deploy/kill.py [--runs 5] [--write] [--picture docs/monitoring-kill.png]

The same as tests/end_to_end/test_deploy_gateway.py, which holds the bounds: two servers of llama.cpp with the bundled model
behind nginx as `llmopt deploy` writes it, Prometheus scraping every second, 20 requests a second for 12 s.
The replica hangs for 0.3 s before the kill, so that requests are in flight on it.  ``--picture``
takes one of Prometheus' own graph at the end of the last run (needs Chromium).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.browser import chromium  # noqa: E402
from tests.end_to_end.test_deploy_gateway import KILLED_AFTER_S, RATE, SECONDS, kill_one_under_load  # noqa: E402
from tests.programs import Prometheus  # noqa: E402

HEAD = (
    "| requests | in flight on the killed replica | failed | last failure after s | alert after s | load before |",
    "|---|---|---|---|---|---|",
)


def row(look: Callable[[Prometheus], None] = lambda _: None) -> str:
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        got = kill_one_under_load(Path(folder), look)
    figures = (
        len(got.result.traces),
        got.in_flight,
        len(got.failed),
        f"{got.recovery_s:.2f}",
        f"{got.alert_s:.1f}",
        f"{load:.1f}",
    )
    return "| " + " | ".join(map(str, figures)) + " |"


def picture(file: Path) -> Callable[[Prometheus], None]:
    """Of two graphs: what each replica works on, and the alert."""
    shown = ("llamacpp:requests_processing", 'ALERTS{alertname="InstanceDown"}')
    query = "&".join(
        f"g{n}.expr={quote(one)}&g{n}.tab=0&g{n}.range_input=30s&g{n}.step_input=1" for n, one in enumerate(shown)
    )

    def take(watching: Prometheus) -> None:
        with chromium() as page:
            page.size(1000, 1560)
            page.call("Page.navigate", url=f"{watching.url}/classic/graph?{query}")
            page.wait(f"document.querySelectorAll('svg path').length >= {len(shown)}")
            page.wait("!document.querySelector('.spinner, [src*=ajax-loader]')?.offsetParent")
            page.picture(file)

    return take


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    rows = [*HEAD]
    for number in range(1, arguments.runs + 1):
        rows.append(row(picture(arguments.picture)) if arguments.picture and number == arguments.runs else row())
        print(rows[-1], flush=True)
    if arguments.write:
        about = f"{RATE:g} requests/s for {SECONDS:g} s, the kill after {KILLED_AFTER_S:g} s, on {os.cpu_count()} cores for everything."
        (HERE / "kill.md").write_text(
            "\n".join(["# A replica is killed", "", about, "Written by `kill.py --write`.", "", *rows, ""])
        )


if __name__ == "__main__":
    main()
