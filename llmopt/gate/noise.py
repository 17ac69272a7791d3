"""A/A noise of a machine: how far two measurements of one and the same thing are apart, and what that allows to be found."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from llmopt.core.domain import Measurement
from llmopt.core.files import write_atomic
from llmopt.core.student import quantile
from llmopt.gate.blocks import Block, mean_log
from llmopt.gate.decide import LEAST_SPREAD, MOST_BLOCKS, POWER
from llmopt.gate.design import looks_of, spend
from llmopt.gate.thresholds import Threshold
from llmopt.gate.unpaired import ASSUMED, ASSUMED_FREEDOM, SessionNoise

SCHEMA = 1
EXACT_SOURCES, EXACT_UNITS = ("quality", "server"), ("bytes", "count")
# Between sessions, of what needs a clock: three calibrated starts may agree by chance, and the next does not.
LEAST_SESSION = 0.005


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Of one metric, standard deviations on the logarithmic scale.

    ``block``: of the difference that a block leaves; ``session``: between starts of a server, their runs' own noise
    taken off, ``None`` where all runs were of one start; ``run``: between runs of one start, ``None`` where no start had two.
    """

    metric: str
    block: float
    session: float | None
    run: float | None
    blocks: int
    sessions: int


def noise_of(blocks: Sequence[Block], threshold: Threshold) -> Noise:
    """From blocks whose two sides are the same thing. Raises ValueError below two blocks."""
    differences = [b.worsening(threshold) for b in blocks]
    count = len(differences)
    if count < 2:
        raise ValueError("one block says nothing of its own noise")
    # The true difference is nought, so all of it is noise: no degree of freedom goes to a mean.
    block = math.sqrt(math.fsum(d * d for d in differences) / count)
    starts: dict[str, list[float]] = {}
    for b in blocks:
        for reading in b.readings:
            starts.setdefault(reading.session, []).append(mean_log([reading], threshold))
    means = [math.fsum(s) / len(s) for s in starts.values()]
    inside = [v - math.fsum(s) / len(s) for s in starts.values() for v in s if len(s) > 1]
    freedom = sum(len(s) - 1 for s in starts.values())
    run = math.sqrt(math.fsum(d * d for d in inside) / freedom) if freedom else None
    session = None
    if len(means) > 1:
        middle = math.fsum(means) / len(means)
        between = math.fsum((m - middle) ** 2 for m in means) / (len(means) - 1)
        share = math.fsum(1 / len(s) for s in starts.values()) / len(starts)
        session = math.sqrt(max(0.0, between - (run or 0.0) ** 2 * share))
    return Noise(
        metric=threshold.name,
        block=max(block, LEAST_SPREAD),
        session=session,
        run=run,
        blocks=count,
        sessions=len(means),
    )


def share_of_error(place: int, metrics: int) -> float:
    """What the metric at ``place`` of so many may spend of a look's error: the first half, the others Holm's first step."""
    if metrics == 1:
        return 1.0
    return 0.5 if place == 0 else 0.5 / (metrics - 1)


def blocks_to_find(loss: float, threshold: Threshold, spread: float, error: float, power: float = POWER) -> int | None:
    """How many blocks find a true ``loss`` (0.05: 5 %) in ``power`` of all gates; ``None`` beyond ``MOST_BLOCKS``.

    ``error``: what the metric may spend in all.  At the last look alone: that some are found earlier makes it a little less.
    """
    real, tolerate, block = (threshold.as_log(x) for x in (loss, threshold.tolerate, threshold.block))
    if real <= max(tolerate, block):
        return None

    def found(count: int) -> bool:
        level = spend(error, looks_of(count))[-1]
        of_the_mean, freedom = spread / math.sqrt(count), count - 1
        wanted = max(tolerate + quantile(level, freedom) * of_the_mean, block)
        return real - wanted >= quantile(1 - power, freedom) * of_the_mean

    return next((n for n in (*range(2, 41), *range(44, MOST_BLOCKS, 8)) if found(n)), None)


class Kept(msgspec.Struct, kw_only=True):
    """What ``llmopt gate calibrate`` found for one case on one machine."""

    case_key: str
    label: str
    machine: str
    measured_at: str
    block_s: float
    noise: list[Noise]
    schema: int = SCHEMA


def noise_file(results: Path, case_key: str, machine: str) -> Path:
    return results / "gates" / f"noise-{machine}-{case_key[:8]}.json"


def keep(results: Path, kept: Kept) -> Path:
    file = noise_file(results, kept.case_key, kept.machine)
    write_atomic(file, msgspec.json.format(msgspec.json.encode(kept), indent=1) + b"\n")
    return file


def kept_noise(results: Path, machine: str) -> list[Kept]:
    """Everything calibrated on a machine, newest first; a file that cannot be read is none."""
    found = []
    for file in (results / "gates").glob(f"noise-{machine}-*.json"):
        with contextlib.suppress(msgspec.DecodeError, OSError):
            kept = msgspec.json.decode(file.read_bytes(), type=Kept)
            if kept.schema == SCHEMA:
                found.append(kept)
    return sorted(found, key=lambda k: k.measured_at, reverse=True)


def noise_between_sessions(results: Path, run: Measurement, threshold: Threshold) -> SessionNoise:
    """Of a metric of a case: calibrated for this very case, else the largest calibrated on its machine, else assumed.

    The noise of a run is in it: with few starts the two cannot be told apart, and one of them may be found as nothing.
    Bytes of weights and of a cache are the same at every start: no luck of a session is in them.
    """
    metric = threshold.name
    if threshold.metric.source in EXACT_SOURCES and threshold.metric.unit in EXACT_UNITS:
        return SessionNoise(spread=LEAST_SPREAD, freedom=ASSUMED_FREEDOM, source="own")
    there = kept_noise(results, run.machine.fingerprint)
    rows = [
        (math.hypot(n.session, n.run or 0.0), n.sessions, k.case_key == run.case_key)
        for k in there
        for n in k.noise
        if n.metric == metric and n.session is not None and n.sessions > 2
    ]
    own = [row for row in rows if row[2]]  # the newest is the first
    if not rows:
        return SessionNoise(spread=ASSUMED, freedom=ASSUMED_FREEDOM, source="assumed")
    spread, sessions, _ = own[0] if own else max(rows)
    least = LEAST_SESSION if threshold.needs_a_clock else LEAST_SPREAD
    return SessionNoise(spread=max(spread, least), freedom=sessions - 1, source="calibrated")
