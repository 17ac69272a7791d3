"""What ``llmopt verify`` found, as one document: the verdict in words, every load that was tried, the capacity that is left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from llmopt.core.machine import this_machine
from llmopt.core.units import show
from llmopt.gate.judge import EXIT_STATUS, Status
from llmopt.pipeline.measuring import without_secrets
from llmopt.pipeline.verifying import Effort, Promise, Verified

SCHEMA = 1


def document(promise: Promise, effort: Effort, found: Verified) -> dict[str, Any]:
    """The verdict is that of the load of all replicas; the others tell what is left."""
    whole = found[0]
    status, reasons = status_of(whole)
    evidence = promise.evidence
    return {
        "kind": "verify",
        "schema": SCHEMA,
        "status": status,
        "words": f"{status.upper()}: {'; '.join(reasons)}",
        "exit_status": EXIT_STATUS[status],
        "url": without_secrets(promise.url),
        "model": promise.model,
        "replicas": promise.replicas,
        "confidence": effort.confidence,
        "rounds": effort.rounds,
        "promise": {
            "source": evidence.source, "label": evidence.label, "key": evidence.key, "load": evidence.load,
            "verdict": evidence.verdict, "evidence": evidence.evidence, "machine": dict(evidence.machine),
        },
        "measured_from": asdict(this_machine()),
        "levels": list(found),
        "capacity": capacity_left(promise, found),
        "notes": notes(promise, whole),
    }  # fmt: skip


def status_of(level: Mapping[str, Any]) -> tuple[Status, list[str]]:
    """The worst row decides, and all rows of its kind are named."""
    slos, metrics = level["slos"], level["metrics"]
    if level["problem"]:
        return "regression", [f"after {len(level['runs'])} run(s) it answered no more: {level['problem']}"]
    worse = [f"{row['text']} is missed: {slo_words(row)}" for row in slos if row["status"] == "missed"]
    if level["failures_status"] == "regression":
        worse.append(f"{level['failed']} of {level['requests']} requests failed")
    worse += [
        f"{m['name']} {m['change']:+.0%} against what was promised" for m in metrics if m["status"] == "regression"
    ]
    if worse:
        return "regression", worse
    unsure = [f"{row['text']}: {slo_words(row)}" for row in slos if row["status"] == "unclear"]
    unsure += [
        f"{m['name']} {m['change']:+.0%}, too little is known of it" for m in metrics if m["status"] == "inconclusive"
    ]
    unsure += [f"{name} was not told by every run" for name in level["left_out"]]
    unsure += level["invalid"]
    if not slos and not metrics:
        unsure.append("nothing was promised that can be measured here")
    if unsure:
        return "inconclusive", list(dict.fromkeys(unsure))
    kept = [f"{row['text']} is kept ({slo_words(row)})" for row in slos]
    return "pass", [*kept, *(["figures are as promised"] if metrics else [])]


def slo_words(row: Mapping[str, Any]) -> str:
    if row["measured"] is None or row["low"] is None:
        return str(row["why"])
    return f"{show(row['measured'], row['unit'])} [{show(row['low'], row['unit'])}, {show(row['high'], row['unit'])}]"


def capacity_left(promise: Promise, levels: Verified) -> dict[str, Any] | None:
    """The rate at the highest load that keeps the SLOs, beside what was promised for all replicas; None without SLOs."""
    figure = promise.evidence.figures.get("requests_per_s")
    promised = figure.value * promise.replicas if figure and figure.value else None
    if not levels[0]["slos"]:
        return None
    for found in levels:
        if found["slo_status"] == "kept":
            now = found["requests_per_s"]
            share = now / promised if now and promised else None
            words = f"{now:.3g} requests/s within the SLOs at {found['load']}" if now else f"kept at {found['load']}"
            words += f", {share:.0%} of the {promised:.3g} that were promised" if share and promised else ""
            return {
                "requests_per_s": now,
                "replicas": found["replicas"],
                "promised": promised,
                "share": share,
                "words": words,
            }
    least = levels[-1]
    if least["problem"]:
        words = f"not known: at {least['load']} it answered no more"
    elif least["slo_status"] == "unclear" or len(levels) < promise.replicas:
        words = f"not known: at {least['load']} the SLOs are {least['slo_status']}"
    else:
        words = f"none: even {least['load']}, what one replica was promised for, misses the SLOs"
    return {"requests_per_s": None, "replicas": None, "promised": promised, "share": None, "words": words}


def notes(promise: Promise, level: Mapping[str, Any]) -> list[str]:
    """What a reader must know before believing it."""
    evidence, found = promise.evidence, []
    if evidence.machine.get("fingerprint") not in (None, this_machine().fingerprint):
        found.append("the promise was measured on another machine than the one that asks now")
    found.append("a server behind a URL is not started anew: what its one start decided counts as its own")
    if evidence.verdict != "valid":
        found.append(f"the runs behind the promise are {evidence.verdict}")
    found += [f"the promise itself is doubtful: {reason}" for reason in evidence.forced]
    found += [
        f"{' and '.join(slo.implies)}: kept with {slo.text}, which is tighter" for slo in evidence.slos if slo.implies
    ]
    if evidence.without_slo:
        found.append(
            f"it was judged by {', '.join(evidence.without_slo)} as well, which is not judged here:"
            " an SLO bounds a percentile of what a request takes"
        )
    lacking = [m for m in ("ttft_p50", "tpot_p50", "requests_per_s") if m not in evidence.figures]
    if lacking:
        found.append(f"nothing was promised of {', '.join(lacking)}")
    return found
