"""Quantities as people write them, in and out."""

from __future__ import annotations

import math
import re
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

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
SHARE_TOLD = 1.05  # an engine's own gauge may say a little more than all
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
    scale = scales.get(suffix, 1.0)
    value = scaled(Decimal(match[1]), scale) if 1e-300 < number < 1e300 else number * scale
    if not math.isfinite(value) or (unit == "share" and value > SHARE_TOLD):
        raise UsageError(f"{text!r} is out of range", hint=f"for example {example(unit)}")
    return value


def scaled(number: Decimal, scale: float) -> float:
    """95% is .95 and no more: in binary 95 × .01 is above it, and a measured .95 would miss it."""
    return float(number * Decimal(repr(scale)))


def example(unit: str) -> str:
    return {"s": "500ms", "bytes": "2GiB", "share": "95%"}.get(unit, "20")


def show(value: float | None, unit: str) -> str:
    """A value for people: latencies in ms, sizes in MiB or GiB, shares in per cent; an en dash for unknown."""
    if value is None:
        return "–"
    if unit == "s":
        if value < 10:
            return f"{value * 1e3:.2g} ms" if 0 < value < 1e-4 else f"{value * 1e3:.1f} ms"
        return f"{value:.1f} s"
    if unit == "bytes":
        return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"
    if unit == "share":
        return f"{value * 100:.2g}%" if 0 < value < 0.001 else f"{value:.1%}"
    if unit in ("tps", "rps") and 0 < value < 1:
        return f"{value:.3g} {'tok/s' if unit == 'tps' else 'req/s'}"
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


DIGITS_OF_A_BOUND = 4


def bound_that_holds(value: float, unit: str, *, at_most: bool) -> str:
    """``512.4ms`` for a value of 512.31 ms: as an option takes it, rounded so that the value still keeps it.

    Of any value that a record may hold: a score may be below nothing, which no quantity is.
    """
    suffix, scale = scale_of(value, unit)
    exact = Decimal(repr(value)) / Decimal(repr(scale))
    places = Decimal(1).scaleb(exact.adjusted() - DIGITS_OF_A_BOUND + 1) if exact else Decimal(1)
    rounded = exact.quantize(places, ROUND_CEILING if at_most else ROUND_FLOOR)
    if at_most and scaled(rounded, scale) < value:  # the product of the two is not exact in binary
        rounded += places
    elif not at_most and scaled(rounded, scale) > value:
        rounded -= places
    return f"{rounded.normalize():f}{suffix}"


def scale_of(value: float, unit: str) -> tuple[str, float]:
    """In which of its units a quantity is written."""
    if unit == "s":
        return ("ms", TIME["ms"]) if value < 10 else ("s", 1.0)
    if unit == "bytes":
        suffix = "GiB" if value >= BYTES["GiB"] else "MiB"
        return suffix, float(BYTES[suffix])
    return ("%", SHARE["%"]) if unit == "share" else ("", 1.0)


def show_beside(value: float, bound: float, unit: str) -> str:
    """As ``show``, with as many digits as tell it from the bound that it misses."""
    if show(value, unit) != show(bound, unit) or value == bound:
        return show(value, unit)
    suffix, scale = scale_of(bound, unit)
    for digits in range(2, 18):
        text = f"{value / scale:.{digits}g}"
        if text != f"{bound / scale:.{digits}g}":
            break
    space = "" if unit == "share" else " "
    named = {"tps": " tok/s", "rps": " req/s"}.get(unit, f"{space}{suffix}" if suffix else "")
    return f"{text}{named}"
