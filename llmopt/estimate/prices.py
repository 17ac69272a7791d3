"""What an hour of a device costs: as the user says, by the user's file, or by the small table that comes with llmopt."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmopt.core.errors import UsageError, nearest
from llmopt.estimate.hardware import device, devices

TABLE = Path(__file__).with_name("prices.toml")
TOKENS_OF_A_PRICE = 1e6
SECONDS_OF_AN_HOUR = 3600
INTERRUPTED = "spot machines can be taken away at any moment: what they were doing is lost or starts again"


@dataclass(frozen=True, kw_only=True)
class Price:
    """Of one device an hour; ``spot``: the range of what may be interrupted."""

    per_hour: float
    low: float
    high: float
    source: str
    spot: tuple[float, float] | None = None


def given_price(per_hour: float) -> Price:
    """Of the whole machine, as the user says. Raises UsageError."""
    if not (math.isfinite(per_hour) and per_hour > 0):
        raise UsageError(f"--price-per-hour must be more than 0, got {per_hour:g}", hint="--price-per-hour 2.5")
    return Price(per_hour=per_hour, low=per_hour, high=per_hour, source="as given")


def price_of(key: str, file: Path | None = None) -> Price | None:
    """Of a device by its key; ``None`` for one that has none. Raises UsageError for a file that is no table of prices."""
    rows = read_prices(file) if file else tomllib.loads(TABLE.read_text(encoding="utf-8"))
    row = rows.get(key)
    if row is None:
        return None
    where = f"{file or TABLE.name}, [{key}]"
    try:
        on_demand, spot = number(row["on_demand"]), row.get("spot")
        low, high = map(number, row.get("range", (on_demand, on_demand)))
        source = "; ".join(part for part in (row.get("source") or str(file), row.get("date")) if part)
        bounds = (number(spot[0]), number(spot[1])) if spot else None
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UsageError(
            f"{where} is no price: {error}", hint=f'["{key}"] on_demand = 2.5, and spot = [1.0, 1.8] where there is one'
        ) from error
    return Price(per_hour=on_demand, low=low, high=high, spot=bounds, source=source)


def read_prices(file: Path) -> dict[str, Any]:
    """A table under each device's name, spelled as ``--gpu`` takes it. Raises UsageError."""
    try:
        rows: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read as prices: {error}", hint='["h100"] on_demand = 2.5') from error
    found = {}
    for name, row in rows.items():
        try:
            found[device(name).key] = row
        except UsageError as error:
            raise UsageError(
                f"{file} prices {name!r}, which is no device", hint=nearest(name, list(devices()))
            ) from error
    return found


def number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value > 0):
        raise ValueError(f"{value!r} is no amount")
    return float(value)


def per_million(per_hour: float, output_tps: float) -> float:
    """Of output tokens at this throughput."""
    return per_hour / SECONDS_OF_AN_HOUR / output_tps * TOKENS_OF_A_PRICE
