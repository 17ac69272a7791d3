"""What ``llmopt estimate`` found, for the terminal. Without rich: it would cost more time than the estimate."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

from llmopt.core.units import show

PARTS = (("weights_bytes", "weights"), ("kv_cache_bytes", "KV cache"), ("activation_bytes", "activations"))
BAR = 24
ACTIVE = 0.9  # share of a mixture that is called all of it


def print_estimate(document: dict[str, Any]) -> None:
    model, memory, load = document["model"], document["memory"], document["load"]
    quantization = document["quantization"]
    size = f"{count(model['parameters'])} parameters"
    if model["active_parameters"] < ACTIVE * model["parameters"] and model["experts"]:
        size += f", {count(model['active_parameters'])} of them active"
    print(f"{model['name']} ({model['model_type']}, {size}) as {quantization['name']} on {document['backend']}")
    print(
        f"{load['sequences']} × {load['input_tokens']:,} + {load['output_tokens']:,} tokens; all figures are estimated"
    )
    print()
    total = memory["total_bytes"]
    for key, title in PARTS:
        share = memory[key] / total if total else 0.0
        print(f"  {title:<12} {show(memory[key], 'bytes'):>10} {share:>6.1%}  {'█' * round(share * BAR)}")
    print(f"  {'total':<12} {show(total, 'bytes'):>10}")
    print(
        f"  {'overhead':<12} {show(memory['overhead_bytes'], 'bytes'):>10}         context, graphs, what the engine reserves"
    )
    devices = document["devices"]
    if devices["count"] > 1 or devices["memory_bytes"]:
        print(f"  {'per GPU':<12} {show(memory['per_gpu_bytes'], 'bytes'):>10}         of {devices['count']}")
    if document["fits"] is not None:
        verdict = "fits" if document["fits"] else "does not fit"
        print()
        print(f"{verdict} {devices['name']} ({show(devices['memory_bytes'], 'bytes')} each)")
        print(
            f"longest context: {memory['max_context']:,} tokens; most sequences of this length: {memory['max_concurrency']:,}"
        )
    print_speed(document.get("speed"))
    print()
    for line in document["assumptions"]:
        print(f"  {line}")
    for line in document["doubts"]:
        print(f"! {line}")


FIGURES = (
    ("ttft_s", "TTFT", "s"), ("itl_s", "ITL", "s"), ("tps", "one user", "tps"), ("e2e_s", "whole answer", "s"),
    ("output_tps", "all users", "tps"), ("requests_per_s", "requests", "rps"), ("prefill_tps", "prompts", "tps"),
    ("usd_per_million_output_tokens", "1M tokens", "price"),
    ("usd_per_million_output_tokens_at_best_batch", "at best batch", "price"),
)  # fmt: skip


def print_speed(speed: dict[str, Any] | None) -> None:
    """Figures with their intervals, throughput along the number of sequences, and what they rest on."""
    if speed is None:
        return
    print()
    if speed.get("unknown_because"):
        print(f"no speed: {speed['unknown_because']}" + (f" ({speed['hint']})" if speed.get("hint") else ""))
        return
    load = f"{speed['rate']:g} requests/s" if speed["rate"] is not None else f"{speed['sequences']} at once"
    print(f"on {speed['device']}, {load}, {speed['interval']:.0%} intervals; bound by {speed['bound']}")
    for key, title, unit in FIGURES:
        figure = speed[key]
        if figure["low"] is not None:
            print(
                f"  {title:<14} {show(figure['value'], unit):>12}   {show(figure['low'], unit)} to {show(figure['high'], unit)}"
            )
    print_curve(speed)
    for line in speed["refused"]:
        print(f"! {line}")
    if price := speed["price"]:
        print(f"  price: {price['per_hour']:g} an hour, {price['source']}")
        if price["spot"]:
            print(f"  spot: {price['spot']['low']:g} to {price['spot']['high']:g} an hour; {price['spot']['note']}")
    print(f"  {evidence_words(speed)}")


def print_curve(speed: dict[str, Any]) -> None:
    top, best = max(row["output_tps"] for row in speed["curve"]), speed["best_batch"]["value"]
    print()
    rows = [("at once", "all users", "ITL", "TTFT", "")]
    for row in speed["curve"]:
        rows.append((
            str(row["batch"]), show(row["output_tps"], "tps"), show(row["itl_s"], "s"), show(row["ttft_s"], "s"),
            "█" * max(1, round(row["output_tps"] / top * BAR)) + (" best batch" if row["batch"] == best else ""),
        ))  # fmt: skip
    print_table(rows, left=(4,))


def evidence_words(speed: dict[str, Any]) -> str:
    """What the figures were corrected by, and how far off that was where it was left out."""
    found, errors = speed["calibration"], speed["calibration"]["left_out_error"]
    device = f"peaks: {speed['device_source']}"
    if not found["of_this_engine"]:
        return f"{device}; no run of this engine on it is known: by the table alone"
    named = [
        f"{word} {errors[key]:.1%}"
        for key, word in (("itl_s", "ITL"), ("output_tps", "throughput"))
        if errors[key] is not None
    ]
    return f"{device}; corrected by {found['of_this_engine']} measured configurations, leave-one-out error {', '.join(named)}"


def count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"


def print_size(document: dict[str, Any]) -> None:
    """Of a model whose number of parameters is all that is known."""
    quantization = document["quantization"]
    print(
        f"{document['model']['name']} as {quantization['name']}: weights of"
        f" {show(document['memory']['weights_bytes'], 'bytes')} ({quantization['bits_per_weight']:g} bits each), estimated"
    )
    for line in document["doubts"]:
        print(f"! {line}")


def print_fits(document: dict[str, Any]) -> None:
    devices = document["devices"]
    print(
        f"{document['model']['name']} on {document['backend']}, {devices['count']} × {devices['name']}; all figures are estimated"
    )
    print()
    rows = [("quantization", "bits/w", "weights", "longest context", "sequences")]
    for row in document["rows"]:
        found = (f"{row['max_context']:,}", f"{row['max_concurrency']:,}") if row["fits"] else ("does not fit", "–")
        rows.append((row["quantization"], f"{row['bits_per_weight']:.2f}", show(row["weights_bytes"], "bytes"), *found))
    print_table(rows)
    for line in document["doubts"]:
        print(f"! {line}")


def print_devices(rows: Sequence[dict[str, Any]]) -> None:
    table = [("name", "device", "memory", "bandwidth", "16-bit", "source")]
    for row in rows:
        table.append((
            row["key"], row["name"], show(row["memory_bytes"], "bytes"), f"{row['bandwidth_bytes_per_s'] / 1e9:,.0f} GB/s",
            f"{row['tflops'].get('fp16', 0):g} TFLOP/s", f"{row['source']}, {row['date']}",
        ))  # fmt: skip
    print_table(table, left=(0, 1, 5), width=shutil.get_terminal_size((0, 0)).columns)


def print_table(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,), width: int = 0) -> None:
    """Columns as wide as their widest cell; lines no longer than ``width`` where it is known."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        line = "  ".join(cells).rstrip()
        print(line if not width or len(line) <= width else f"{line[: width - 1]}…")
