"""What is gated: a metric, how much worse is tolerated, and from how much on it blocks.

A change counts in the direction in which the metric becomes worse, as the logarithm of a ratio: latency up by 5 % and
throughput down by 5 % are both a loss of 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llmopt.core.errors import UsageError, nearest
from llmopt.core.metric_table import METRICS, Metric, parse_metric

# A single number is what blocks; half of it is tolerated.
TOLERATED_SHARE = 0.5
# Chosen by benchmarks/gate/simulate.py: with noise of 2 % between runs a loss of 5 % is found, and nothing lost passes.
DEFAULT_TOLERATE, DEFAULT_BLOCK = 0.02, 0.03
DEFAULTS = ("output_tps", "tpot_p50", "ttft_p50", "peak_vram_bytes", "peak_rss_bytes")
DEFAULT_QUALITY = {"kl": 0.01}
# Runs too short for a steady window have no figure of it, and those of other tools know no plan of a request.
INSTEAD = {"output_tps": "output_tps_whole", "ttft_p50": "ttft_service_p50"}
# A ratio of these says nothing: they may be zero, or are shares.
ABSOLUTE = ("kl", "kl_p99", "top1")
NO_RATIO = (
    "error_rate",
    "requests_failed",
    "dropped",
    "preemptions",
    "slo_attainment",
    "cache_hit_rate",
    "kv_usage_peak",
)
THOUSANDFOLD = math.log(1000)
# The same on a machine that does other things too.
WITHOUT_A_CLOCK = ("bytes", "nats", "count", "share")


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """``tolerate`` and ``block`` are losses: 0.05 is 5 %. Of an ``absolute`` one they are differences in the metric's unit."""

    metric: Metric
    statistic: str | None
    tolerate: float
    block: float
    absolute: bool = False
    default: bool = False

    @property
    def name(self) -> str:
        return f"{self.metric.name}_{self.statistic}" if self.statistic else self.metric.name

    def as_log(self, loss: float) -> float:
        """The loss as a worsening on the logarithmic scale: 5 % more latency is log 1.05, 5 % less throughput −log 0.95."""
        return math.log1p(loss) if self.metric.better == "lower" else -math.log1p(-loss)

    def worsening(self, base: float, candidate: float) -> float:
        """How much worse on the logarithmic scale; both must be above zero."""
        ratio = math.log(candidate / base)
        return ratio if self.metric.better == "lower" else -ratio

    def change(self, worsening: float) -> float:
        """Back to what people read: candidate / base − 1, in the metric's own direction; a bound past a thousandfold is cut there.

        Two blocks at a high confidence have bounds that no float holds. What is decided is decided on the logarithms.
        """
        return math.expm1(at_most_thousandfold(worsening if self.metric.better == "lower" else -worsening))

    @property
    def needs_a_clock(self) -> bool:
        return self.metric.unit not in WITHOUT_A_CLOCK


def at_most_thousandfold(logarithm: float) -> float:
    return max(-THOUSANDFOLD, min(THOUSANDFOLD, logarithm))


def parse_thresholds(texts: Sequence[str]) -> tuple[Threshold, ...]:
    """``ttft_p95:5%`` blocks from 5 % on and tolerates 2.5 %; ``ttft_p95:2%:5%`` names both. The first is the primary one.

    Without any, those of ``DEFAULTS``.  Raises UsageError.
    """
    if not texts:
        return tuple(threshold(name, DEFAULT_TOLERATE, DEFAULT_BLOCK, default=True) for name in DEFAULTS)
    found = tuple(parse_threshold(text) for text in texts)
    names = [one.name for one in found]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"--metric names {name} twice", hint="one threshold for each metric")
    return found


def parse_threshold(text: str) -> Threshold:
    name, *bounds = text.split(":")
    if not name or len(bounds) > 2:
        raise UsageError(f"--metric {text!r} is no threshold", hint="--metric ttft_p95:5%, or ttft_p95:2%:5%")
    losses = [loss(bound, text) for bound in bounds]
    if not losses:
        return threshold(name, DEFAULT_TOLERATE, DEFAULT_BLOCK)
    tolerate, block = losses if len(losses) == 2 else (losses[0] * TOLERATED_SHARE, losses[0])
    if tolerate > block:
        raise UsageError(
            f"--metric {text!r} tolerates more than it blocks",
            hint=f"the smaller one first: {name}:{bounds[1]}:{bounds[0]}",
        )
    return threshold(name, tolerate, block)


def loss(text: str, whole: str) -> float:
    """``5%`` or ``0.05`` → 0.05."""
    words = text.strip()
    try:
        value = float(words.removesuffix("%")) / (100 if words.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise UsageError(
            f"{text!r} in --metric {whole!r} is no loss between 0 and 100 %", hint="a share with its sign: 5%, or 0.05"
        )
    return value


def threshold(name: str, tolerate: float, block: float, *, default: bool = False) -> Threshold:
    metric, statistic = parse_metric(name)
    if metric.name in ABSOLUTE:
        raise UsageError(
            f"{name} may be near zero: a ratio says nothing", hint=f"--quality {name}:0.01 is a difference"
        )
    if metric.name in NO_RATIO:
        raise UsageError(
            f"{name} may be zero: a ratio says nothing",
            hint="failures, cut answers and token counts are gated unasked; for a limit: llmopt recommend --slo",
        )
    return Threshold(metric=metric, statistic=statistic, tolerate=tolerate, block=block, default=default)


def parse_quality(texts: Sequence[str]) -> tuple[Threshold, ...]:
    """``kl:0.01``: so many nats more than the base block, half of that is tolerated; ``perplexity:1%`` is a ratio.

    Without any, those of ``DEFAULT_QUALITY``, where both sides have them.  Raises UsageError.
    """
    found = []
    if not texts:
        return tuple(difference(name, bound, default=True) for name, bound in DEFAULT_QUALITY.items())
    for text in texts:
        name, colon, bound = text.partition(":")
        if name == "perplexity":
            found.append(parse_threshold(text))
            continue
        if name not in ABSOLUTE:
            raise UsageError(
                f"--quality {name!r} is no measure of quality", hint=nearest(name, [*ABSOLUTE, "perplexity"])
            )
        try:
            value = float(bound)
        except ValueError:
            value = math.nan
        if not colon or not 0 < value < math.inf:
            raise UsageError(f"--quality {text!r} has no difference", hint=f"--quality {name}:0.01")
        found.append(difference(name, value))
    return tuple(found)


def difference(name: str, bound: float, *, default: bool = False) -> Threshold:
    return Threshold(
        metric=METRICS[name],
        statistic=None,
        tolerate=bound * TOLERATED_SHARE,
        block=bound,
        absolute=True,
        default=default,
    )
