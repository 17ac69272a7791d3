"""A finished artifact, and the forecast of one, on the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from llmopt.core.units import show
from llmopt.report.terminal import print_quality, say, stdout_console


def print_artifact(document: dict[str, Any], console: Console | None = None) -> None:
    console = console or stdout_console()
    artifact = document["artifact"]
    there = " (already there)" if document["already_there"] else ""
    say(console, f"{title(artifact['quantization'])}{there}: {artifact['path']}", style="bold", soft_wrap=True)
    size = show(artifact["size_bytes"], "bytes") if artifact["size_bytes"] else "nothing on disk"
    say(
        console,
        f"{size}, {artifact['bits_per_weight']:.2f} bits per weight, "
        f"{document['seconds']:.1f} s, peak memory {show(document['peak_memory_bytes'], 'bytes')}",
    )
    for doubt in (document.get("calibration") or {}).get("doubts", []):
        say(console, f"doubt: {doubt}", soft_wrap=True)
    if document["quality"]:
        print_quality(document["quality"], console)


def title(quantization: dict[str, Any]) -> str:
    return f"{quantization['name']} ({quantization['format']})"


def print_forecast(document: dict[str, Any], console: Console | None = None) -> None:
    """What ``--dry-run`` knows, a line each."""
    console = console or stdout_console()
    library = document["library"]
    rows = [
        ("made by", f"{library['name']} {library['version'] or ''} in {document['environment']}"),
        ("loads", loads_line(document)),
        ("layers", f"{document['quantized_layers']} linear layers to quantize"),
        ("result", f"{show(document['size_bytes'], 'bytes')}, {document['bits_per_weight']:.2f} bits per weight"),
        ("disk", show(document["disk_bytes"], "bytes")),
        ("memory", f"about {show(document['memory_bytes'], 'bytes')} ({document['evidence']})"),
        ("time", f"about {duration(document['seconds'])} ({document['evidence']})"),
        (
            "if killed",
            "goes on where it stopped"
            if document["resumes"]
            else "starts over; whole weights without a proof are kept",
        ),
    ]
    if (calibration := document["calibration"]) is not None:
        rows.append(
            (
                "calibration",
                f"{calibration['samples']} samples, {calibration['tokens']:,} tokens of {calibration['source']}",
            )
        )
    if document["fallback_tensors"]:
        kinds = sorted(set(document["fallback_tensors"].values()))
        rows.append(("fallbacks", f"{len(document['fallback_tensors'])} tensors become {', '.join(kinds)}"))
    rows += [("doubt", doubt) for doubt in document["doubts"]]
    name = title({"name": document["quantization"], "format": document["format"]})
    say(console, f"{name} of {document['model']}", style="bold", soft_wrap=True)
    for label, text in rows:
        say(console, f"{label:<12} {text}", soft_wrap=True)


def loads_line(document: dict[str, Any]) -> str:
    if document["engine"] is None:
        return "name an engine with --for to hear whether it loads this"
    if document["loads"] is None:
        return f"not known for {document['engine']}"
    return f"{document['engine']} loads it: {document['loads']['evidence']}"


def duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )
