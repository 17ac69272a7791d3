"""Quantities as people write them, in and out."""

from __future__ import annotations

import math
import re

from llmopt.core.errors import UsageError

TIME = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}
BYTES = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
SHARE = {"%": 0.01}
OF_UNIT: dict[str, dict[str, float]] = {"s": TIME, "bytes": {k: float(v) for k, v in BYTES.items()}, "share": SHARE}


def parse_quantity(text: str, unit: str) -> float:
    """``500ms`` → 0.5, ``2GiB`` → 2147483648, ``95%`` → 0.95, ``20`` → 20, in the metric's own unit.

    A time or a size needs its unit: a bare number there is a mistake waiting to happen. Raises UsageError.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([a-zA-Z%]*)\s*", text)
    scales = OF_UNIT.get(unit, {})
    if match is None:
        raise UsageError(f"{text!r} is not a quantity", hint=f"for example {example(unit)}")
    number, suffix = float(match[1]), match[2]
    if not suffix and unit in ("s", "bytes") and number:
        raise UsageError(f"{text!r} needs a unit", hint=f"one of {', '.join(scales)}: for example {example(unit)}")
    if suffix and suffix not in scales:
        known = ", ".join(scales) or "none: write a bare number"
        raise UsageError(f"unknown unit {suffix!r} in {text!r}", hint=f"units here: {known}")
    value = number * scales.get(suffix, 1.0)
    if not math.isfinite(value) or (unit == "share" and value > 1):
        raise UsageError(f"{text!r} is out of range", hint=f"for example {example(unit)}")
    return value


def example(unit: str) -> str:
    return {"s": "500ms", "bytes": "2GiB", "share": "95%"}.get(unit, "20")


def show(value: float | None, unit: str) -> str:
    """A value for people: latencies in ms, sizes in MiB or GiB, shares in per cent; an en dash for unknown."""
    if value is None:
        return "–"
    if unit == "s":
        return f"{value * 1e3:.1f} ms" if value < 10 else f"{value:.1f} s"
    if unit == "bytes":
        return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"
    if unit == "share":
        return f"{value:.1%}"
    if unit == "tps":
        return f"{value:.0f} tok/s" if value >= 100 else f"{value:.1f} tok/s"
    if unit == "rps":
        return f"{value:.1f} req/s"
    if unit == "price":
        return f"{value:.4g}" if value < 1000 else f"{value:,.0f}"
    if unit in ("joule", "watt"):
        return f"{value:.3g} {unit[0].upper()}" if value < 1000 else f"{value:,.0f} {unit[0].upper()}"
    if value >= 1000:
        return f"{value:.0f}"
    return f"{value:.4f}" if value < 1 else f"{value:.3g}"
