"""Figures that some runs lack: which metric is judged all the same, and what a gap says against a pass.

A run may have lost its figure because it was bad: a rate is unknown where latencies never get steady.  So the runs that
know a metric are judged, and what the candidate lost beyond the base lets nothing pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llmopt.core.errors import UsageError
from llmopt.gate.blocks import Reading
from llmopt.gate.thresholds import INSTEAD, Threshold, threshold

HINT = "another --metric; p95 needs 59 requests in a run, p99 299"


def knowing(side: Sequence[Reading], one: Threshold) -> list[Reading]:
    """The runs that have a figure with a logarithm."""
    return [r for r in side if r.value(one) is not None]


def chosen(base: Sequence[Reading], candidate: Sequence[Reading], thresholds: Sequence[Threshold]) -> list[Threshold]:
    """What is gated of each threshold, see ``usable``. Raises UsageError for a named one that no run of either side knows."""
    found = [usable(base, candidate, one) for one in thresholds]
    runs = [*base, *candidate]
    for one in found:
        if runs and not one.default and not knowing(runs, one):
            raise UsageError(
                f"{one.name} is unknown, or zero, on both sides, in all of {len(runs)} runs: there is no ratio",
                hint=HINT,
            )
    return found


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
    """What the candidate's runs lack more often than the base's: nobody knows how much worse that became."""
    found = []
    for one in thresholds:
        ours, theirs = (len(side) - len(knowing(side, one)) for side in (base, candidate))
        if not base or not candidate or theirs / len(candidate) <= ours / len(base):
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
    """Metrics that somebody named and only the candidate has."""
    return tuple(
        f"{one.name} is unknown, or zero, in all of the base's {len(base)} runs: there is no ratio"
        for one in thresholds
        if not one.default and base and not knowing(base, one) and knowing(candidate, one)
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
    return tuple(found)
