"""Write the pages of docs/ that come out of the code, or check that they are fresh (``--check``).

python tools/generate_docs.py [--check]
"""

from __future__ import annotations

import html
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from llmopt.core.gguf_types import FILE_TYPES
from llmopt.core.loading import entries
from llmopt.core.metrics import METRICS
from llmopt.quantize import METHODS, UNQUANTIZED

DOCS = Path(__file__).resolve().parents[1] / "docs"
NOTE = "<!-- Written by tools/generate_docs.py; change the code, then run `make docs`. -->\n\n"


def commands() -> str:
    """Typer's own reference of the command line."""
    argv = [
        sys.executable,
        "-m",
        "typer",
        "llmopt.cli",
        "utils",
        "docs",
        "--name",
        "llmopt",
        "--title",
        "Command reference",
    ]
    text = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return html.unescape(text)


def metrics() -> str:
    lines = [
        "# Metrics",
        "",
        "One table in `llmopt/core/metric_table.py` feeds every report, constraint and ranking.",
        "",
    ]
    lines += ["| name | in records | unit | better | formula |", "|---|---|---|---|---|"]
    for metric in METRICS.values():
        name = f"`{metric.name}_p50 …`" if metric.kind == "distribution" else f"`{metric.name}`"
        formula = metric.formula.replace("|", "\\|")
        lines.append(f"| {name} | `{metric.key}` | {metric.unit} | {metric.better} | {formula} |")
    return "\n".join(lines) + "\n"


def quantizations() -> str:
    lines = ["# Quantizations and the engines that load them", ""]
    lines += ["How to make one, and what is checked: [quantize.md](quantize.md).", ""]
    lines += [
        "| name | method | bits | layouts (first: default) | made with | calibrated |",
        "|---|---|---:|---|---|---|",
    ]
    for q in UNQUANTIZED.values():
        lines.append(f"| `{q.name}` | {q.method} | {q.bits:g} | {q.format} | – | – |")
    for m in METHODS.values():
        made = ", ".join(dict.fromkeys(route.distribution for route in m.routes))
        calibrated = "yes" if m.routes[0].calibrated else "no"
        if m.method == "gguf":
            kind = FILE_TYPES[m.name.removeprefix("gguf-")]
            calibrated = "importance matrix" if kind.needs_imatrix else "`--imatrix`"
        lines.append(f"| `{m.name}` | {m.method} | {m.bits:g} | {', '.join(m.formats)} | {made} | {calibrated} |")
    lines += [
        "",
        "Bits are those of a linear weight, of a GGUF the average over its mix; the artifact says the real number.",
    ]
    lines += ["", "## Which engine loads what", ""]
    lines += [
        "What was tried, with which version, or is documented; `--for ENGINE` chooses by it and refuses by it.",
        "",
    ]
    lines += [
        "| engine | device | quantizations | layouts | loads | evidence | note |",
        "|---|---|---|---|---|---|---|",
    ]
    for e in entries():
        names, layouts = ", ".join(f"`{name}`" for name in e.quantizations), ", ".join(e.formats)
        lines.append(
            f"| {e.engine} | {e.device} | {names} | {layouts} | {'yes' if e.loads else 'no'} | {e.evidence} | {e.note} |"
        )
    return "\n".join(lines) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "commands.md": commands,
    "metrics.md": metrics,
    "quantizations.md": quantizations,
}


def main() -> None:
    stale = []
    for name, make in PAGES.items():
        page, text = DOCS / name, NOTE + make()
        if "--check" not in sys.argv:
            page.write_text(text)
        elif not page.exists() or page.read_text() != text:
            stale.append(name)
    if stale:
        sys.exit(f"error: docs/ is stale: {', '.join(stale)}\nhint: make docs")


if __name__ == "__main__":
    main()
