"""A ranking or the steps of a recipe as CSV: one row a configuration and load (or a step), units in the names.

Unknown is an empty cell.  Text that a spreadsheet would take for a formula gets an apostrophe before it: names are other
people's.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from llmopt.core.errors import UsageError
from llmopt.core.escaping import spreadsheet_text
from llmopt.core.metrics import METRICS, STATISTICS
from llmopt.report.table import artifact_name, label

UNITS = {"kl": "kl_nats", "kl_p99": "kl_p99_nats", "cost": "cost_per_1m_output_tokens", "cost_input": "cost_per_1m_input_tokens",
         "cost_blended": "cost_per_1m_tokens_blended"}  # fmt: skip
ABOUT = ("label", "key", "rank", "tie_group", "on_front", "knee", "rejected_because", "quantization", "engine", "engine_version",
         "bits_per_weight", "size_bytes", "load", "level", "chosen", "saturated", "verdict", "evidence", "runs")  # fmt: skip
OF_STEPS = ("step", "failure", "quantization", "engine", "verdict", "runs", "price_per_1m_output_tokens")
CHANGES = ("ratio", "low", "high")
OF_RUNS = ("run_id", "started_at")  # and every other field: llmopt runs --csv
HEAD_OF_RUNS = f"{','.join(OF_RUNS)},".encode()
HEADS = (f"{','.join(ABOUT[:3])},".encode(), f"{','.join(OF_STEPS[:2])},".encode())


def csv_of(document: dict[str, Any]) -> bytes:
    """Raises UsageError for a document that is neither a ranking nor steps."""
    kinds = {"ranking": load_rows, "steps": step_rows}
    if document.get("kind") not in kinds:
        raise UsageError(f"a document of kind {document.get('kind')!r} is no table", hint=f"one of: {', '.join(kinds)}")
    rows = list(kinds[document["kind"]](document))
    return written(rows, list(dict.fromkeys(name for row in rows for name in row)) or list(ABOUT))


def written(rows: Iterable[dict[str, Any]], names: Sequence[str]) -> bytes:
    """Rows under their names, as this page writes them; a name may be somebody else's too."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([plain(name) for name in names])
    writer.writerows([plain(row.get(name)) for name in names] for row in rows)
    return out.getvalue().encode()


def plain(value: Any) -> Any:
    if isinstance(value, str):
        return spreadsheet_text(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else value


def load_rows(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for row in (*document["ranked"], *document["rejected"]):
        artifact = row["case"]["artifact"]
        for point in row["curve"]:
            about = (
                label(row), row["key"], row.get("rank"), row.get("tie_group"), row.get("on_front"), row.get("knee"),
                "; ".join(row.get("because", ())), artifact_name(artifact), row["case"]["serve"]["backend"],
                row["case"]["backend"].get("version"), artifact.get("bits_per_weight"), artifact.get("size_bytes"),
                point["load"], point["level"], point["chosen"], point["saturated"], point["status"], point["evidence"],
                point["runs"],
            )  # fmt: skip
            yield dict(zip(ABOUT, about, strict=True)) | figures(point["metrics"])


def step_rows(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for row in document["steps"]:
        case = row.get("case") or {"artifact": {"quantization": None}, "serve": {"backend": None}}
        about = (row["step"], row["failure"], case["artifact"]["quantization"], case["serve"]["backend"],
                 (row.get("verdict") or {}).get("status"), row.get("runs"), row.get("price_per_million_tokens"))  # fmt: skip
        found = dict(zip(OF_STEPS, about, strict=True)) | figures(row.get("metrics") or {})
        for word in ("change", "since_start"):
            for name, change in (row.get(word) or {}).items():
                found |= {f"{name}_{word}_{end}": change[end] for end in CHANGES}
        yield found


def figures(metrics: dict[str, Any]) -> dict[str, Any]:
    """Every metric under its key with its statistic (``ttft_s_p50``), in its own unit."""
    found: dict[str, Any] = {}
    for metric in METRICS.values():
        value = metrics.get(metric.key)
        if metric.kind == "distribution":
            found |= {f"{metric.key}_{s}": (value or {}).get(s) for s in (*STATISTICS, "n")}
        elif metric.name == "task_score":
            found |= {f"task_score_{task}": score for task, score in (value or {}).items()}
        else:
            found[UNITS.get(metric.key, metric.key)] = value
    return found
