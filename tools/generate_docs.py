"""Write the pages of docs/ that come out of the code, or check that they are fresh (``--check``).

python tools/generate_docs.py [--check]
"""

from __future__ import annotations

import html
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from llmopt import serve
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
    engines = [name for name in serve.BACKENDS if name != "scripted"]
    lines = ["# Quantizations and the engines that load them", ""]
    lines += ["| name | method | layout | made with | calibrated | loaded by |", "|---|---|---|---|---|---|"]
    for q in [*UNQUANTIZED.values(), *(m.quantization for m in METHODS.values())]:
        made = METHODS.get(q.name)
        able = ", ".join(name for name in engines if serve.backend(name).refusal(q) is None)
        library, calibrated = (made.distribution, "yes" if made.calibrated else "no") if made else ("–", "–")
        lines.append(f"| `{q.name}` | {q.method} | {q.format} | {library} | {calibrated} | {able} |")
    replaced = [(m.replaces, m.quantization.name) for m in METHODS.values() if m.replaces]
    lines += ["", "Successors of libraries that are no longer kept:", ""]
    lines += [f"- instead of {old}: `llmopt quantize MODEL --quant {name} -o DIR`" for old, name in replaced]
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
