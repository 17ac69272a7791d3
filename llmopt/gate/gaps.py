"""Figures that some runs lack: which metric is judged all the same, and what a gap says against a pass.

A run may have lost its figure because it was bad: a rate is unknown where latencies never get steady.  So the runs that
know a metric are judged, and what a run of the candidate lacks lets nothing pass, whatever the base lost: a gate is no surer
for figures that are not there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llmopt.core.errors import UsageError
from llmopt.core.metric_table import value_of
from llmopt.core.statistics import MIN_SAMPLES
from llmopt.gate.blocks import Reading
from llmopt.gate.thresholds import INSTEAD, Threshold, threshold

# What every run has whose requests are answered; the others ask for a device, an engine's counters, a proof …
OF_REQUESTS = ("request", "run")
NEEDS_MORE = ("itl", "ttfv", "cache_hit_rate", "goodput_rps", "goodput_rps_whole")  # … a count in each chunk, SLOs
PERCENTILES = ("p90", "p95", "p99")
HINT = "another --metric; p95 needs 59 requests in a run, p99 299"


def knowing(side: Sequence[Reading], one: Threshold) -> list[Reading]:
    """The runs that have a figure with a logarithm."""
    return [r for r in side if r.value(one) is not None]


def chosen(base: Sequence[Reading], candidate: Sequence[Reading], thresholds: Sequence[Threshold]) -> list[Threshold]:
    """What is gated of each threshold, see ``usable``."""
    return [usable(base, candidate, one) for one in thresholds]


def require_knowable(base: Sequence[Reading], candidate: Sequence[Reading], thresholds: Sequence[Threshold]) -> None:
    """Raise UsageError for a metric that somebody named, that no run of either side knows, and that no other run would know."""
    runs = [*base, *candidate]
    for one in thresholds:
        if runs and not one.default and not knowing(runs, one) and never_known(runs, one):
            raise UsageError(
                f"{one.name} is unknown, or zero, on both sides, in all of {len(runs)} runs: there is no ratio",
                hint=HINT,
            )


def never_known(runs: Sequence[Reading], one: Threshold) -> bool:
    """Whether runs without a figure of it have none for a reason that is the same in every run.

    Latencies and rates come and go: requests fail, and the window never gets steady.
    """
    needed = MIN_SAMPLES.get(int(one.statistic[1:]), 1) if one.statistic in PERCENTILES else 1
    too_few = 0 < max(r.counts.planned for r in runs) < needed
    zero = all(value_of(dict(r.metrics), one.metric, one.statistic) == 0 for r in runs)
    return too_few or zero or one.metric.source not in OF_REQUESTS or one.metric.name in NEEDS_MORE


def usable(base: Sequence[Reading], candidate: Sequence[Reading], wanted: Threshold) -> Threshold:
    """``wanted``, or of one that nobody named its like in ``INSTEAD`` where the side that knows less knows more of that."""
    if not wanted.default or wanted.name not in INSTEAD:
        return wanted
    other = threshold(INSTEAD[wanted.name], wanted.tolerate, wanted.block, default=True)

    def known(one: Threshold) -> tuple[float, int]:
        counts = [len(knowing(side, one)) for side in (base, candidate)]
        shares = [count / max(1, len(side)) for count, side in zip(counts, (base, candidate), strict=True)]
        return min(shares), sum(counts)

    return wanted if known(wanted) >= known(other) else other


def given_up(base: Sequence[Reading], candidate: Sequence[Reading], thresholds: Sequence[Threshold]) -> tuple[str, ...]:
    """What runs of the candidate lack of what the base has: nobody knows how much worse it was there."""
    found = []
    for one in thresholds:
        ours, theirs = (len(side) - len(knowing(side, one)) for side in (base, candidate))
        if not theirs or ours == len(base):
            continue
        alone = theirs == len(candidate)
        found.append(
            f"{one.name} is known of the base alone"
            if alone
            else f"{one.name} is unknown in {theirs} of the candidate's {len(candidate)} runs, {ours} of the base's {len(base)}"
        )
    return tuple(found)


def nothing_to_compare(
    base: Sequence[Reading], candidate: Sequence[Reading], thresholds: Sequence[Threshold]
) -> tuple[str, ...]:
    """Metrics that somebody named and the base never has."""
    return tuple(
        f"{one.name} is unknown, or zero, in all of the base's {len(base)} runs: there is no ratio"
        for one in thresholds
        if not one.default and base and not knowing(base, one)
    )


def too_little(
    base: Sequence[Reading], candidate: Sequence[Reading], left_out: Sequence[Threshold], least: str
) -> tuple[str, ...]:
    """Metrics that both sides know, and not often enough to be judged: what goes unjudged does not pass."""
    return tuple(
        f"{one.name} is known in fewer than {least}"
        for one in left_out
        if knowing(base, one) and knowing(candidate, one)
    )


def gap_notes(
    base: Sequence[Reading], candidate: Sequence[Reading], kept: Sequence[Threshold], lost: Mapping[str, Sequence[int]]
) -> tuple[str, ...]:
    """Which metrics are judged by some of the runs. ``lost``: the blocks that cannot count for a metric, by its name."""
    found = []
    for one in kept:
        ours, theirs = (len(side) - len(knowing(side, one)) for side in (base, candidate))
        if not ours and not theirs:
            continue
        numbers = lost.get(one.name, ())
        blocks = f"block{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
        found.append(
            f"{one.name} is unknown in {ours} of the base's {len(base)} runs and {theirs} of the candidate's "
            f"{len(candidate)}: the others are judged" + (f", without {blocks}" if numbers else "")
        )
        like = threshold(INSTEAD[one.name], one.tolerate, one.block) if one.name in INSTEAD else None
        if like and len(knowing(base, like)) == len(base) and len(knowing(candidate, like)) == len(candidate):
            found[-1] += f"; every run knows --metric {like.name}"
    return tuple(found)
