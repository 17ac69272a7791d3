"""What a token costs: at the load that keeps the SLOs, not at peak throughput; and what the same volume costs elsewhere.

A price per hour buys the tokens of an hour at the chosen point.  It can be laid on the output tokens alone (``cost``), on
the input tokens alone (``cost_input``), or on both together (``cost_blended``): three ways to say the same bill.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from llmopt.core.errors import UsageError

COSTS = ("cost", "cost_input", "cost_blended")
TOKENS_OF_A_PRICE = 1e6
HOURS_OF_A_MONTH = 730.0  # 8760 / 12
DEFAULT_UTILISATION = 0.6


@dataclass(frozen=True, kw_only=True)
class Api:
    """What somebody else asks for a million tokens, and how many are needed a month, in the same currency as the machine.

    ``utilisation``: the part of what a machine could do at its point that is really asked of it over a month.
    """

    price_input: float
    price_output: float
    monthly_tokens: float
    utilisation: float = DEFAULT_UTILISATION


def make_api(
    price_input: float | None, price_output: float | None, monthly_tokens: float | None, utilisation: float | None,
    price_per_hour: float | None,
) -> Api | None:  # fmt: skip
    """Of the options; ``None`` without any. Raises UsageError for some without the others, and for what is no price."""
    given = {"--api-price-input": price_input, "--api-price-output": price_output, "--monthly-tokens": monthly_tokens}
    if all(value is None for value in (*given.values(), utilisation)):
        return None
    missing = [flag for flag, value in (given | {"--price-per-hour": price_per_hour}).items() if value is None]
    if missing:
        raise UsageError(f"a comparison with an API needs {' and '.join(missing)} too", hint=f"{missing[0]} 1.5")
    for flag, value in given.items():
        if not (math.isfinite(value or 0) and (value or 0) >= 0) or (flag == "--monthly-tokens" and not value):
            raise UsageError(f"{flag} must be more than 0, got {value}", hint=f"{flag} 1.5")
    utilisation = DEFAULT_UTILISATION if utilisation is None else utilisation
    if not 0 < utilisation <= 1:
        raise UsageError(f"--utilisation must be above 0 and at most 1, got {utilisation:g}", hint="--utilisation 0.6")
    assert price_input is not None
    assert price_output is not None
    assert monthly_tokens is not None
    return Api(
        price_input=price_input, price_output=price_output, monthly_tokens=monthly_tokens, utilisation=utilisation
    )


def check_price(price_per_hour: float | None) -> None:
    if price_per_hour is not None and not (math.isfinite(price_per_hour) and price_per_hour > 0):
        raise UsageError(f"--price-per-hour must be more than 0, got {price_per_hour:g}", hint="--price-per-hour 2.5")


def monthly(
    output_tps: float | None, total_tps: float | None, price_per_hour: float, api: Api
) -> dict[str, Any] | None:
    """Machines and money of a month, here and there, and the volume from which one's own machine is cheaper.

    ``None`` where the rates of the point are unknown.  The tokens of the month are input and output in the proportion of
    the workload.  The break-even is of one machine; ``None`` where even a machine that is busy as far as ``utilisation``
    goes costs more than the API.
    """
    if not output_tps or not total_tps:
        return None
    share = output_tps / total_tps
    api_price = (1 - share) * api.price_input + share * api.price_output  # of 1M tokens of this mix
    capacity = total_tps * 3600 * HOURS_OF_A_MONTH * api.utilisation
    machine = price_per_hour * HOURS_OF_A_MONTH
    machines = max(1, math.ceil(api.monthly_tokens / capacity))
    even = machine / api_price * TOKENS_OF_A_PRICE if api_price > 0 else math.inf
    own, other = machines * machine, api.monthly_tokens / TOKENS_OF_A_PRICE * api_price
    return {
        "monthly_tokens": api.monthly_tokens,
        "output_share": share,
        "utilisation": api.utilisation,
        "machines": machines,
        "tokens_of_a_machine": capacity,
        "self_hosted": own,
        "api": other,
        "cheaper": "self-hosted" if own < other else "api",
        "break_even_tokens": even if even <= capacity else None,
    }
