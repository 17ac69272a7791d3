"""What is not the same on the two sides, beside the figures: what forbids a comparison, what must be meant, what is told.

Of two sides that are measured now, side by side, a difference is what somebody wants to know the effect of.  Of stored
runs it may be one that nobody thought of, so it must be allowed by name before there can be a verdict.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llmopt.core.domain import Measurement, workload_identity
from llmopt.core.errors import UsageError, nearest

Weight = Literal["forbids", "must be meant", "told"]
SHOWN = 3
# Where a server listens and what a start draws for itself is no difference.
PASSING_OPTIONS = ("url", "backend")


@dataclass(frozen=True, kw_only=True)
class Difference:
    """``name`` is what ``--allow`` takes; ``why`` says what it does to the comparison."""

    name: str
    base: str
    candidate: str
    weight: Weight


def workload_words(run: Measurement) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(workload_identity(run.workload).items()))


def words(value: Any) -> str:
    return "none" if value in (None, "", [], {}, ()) else str(value)


# In the order in which people ask.
ASPECTS: tuple[tuple[str, Weight, Callable[[Measurement], Any]], ...] = (
    ("machine", "forbids", lambda r: f"{r.machine.cpu}, {', '.join(r.machine.gpus) or 'no GPU'} ({r.machine.fingerprint})"),
    ("workload", "forbids", lambda r: workload_identity(r.workload)),
    ("definitions", "forbids", lambda r: f"measuring revision {r.measuring_revision}, by {r.client.get('tool') or 'llmopt'}"),
    ("engine", "must be meant", lambda r: r.backend.get("engine") or r.backend.get("name")),
    ("version", "must be meant", lambda r: r.backend.get("version")),
    ("packages", "must be meant", lambda r: r.backend.get("freeze") or {}),
    ("options", "must be meant", lambda r: {n: v for n, v in r.serve.items() if n not in PASSING_OPTIONS and v not in (None, [], ())}),
    ("artifact", "must be meant", lambda r: r.artifact.get("key") or r.artifact.get("quantization")),
    ("model", "must be meant", lambda r: r.artifact.get("base_key")),
    ("tokenizer", "must be meant", lambda r: r.tokens.get("tokenizer")),
    ("driver", "must be meant", lambda r: r.telemetry.get("driver")),
    ("clients", "told", lambda r: r.client.get("workers")),
    ("llmopt", "told", lambda r: r.llmopt_version),
)  # fmt: skip
CASES = "cases"  # some that only one side has
CLOCKS = "clocks"
NAMES = [*(name for name, _, _ in ASPECTS), CLOCKS, CASES]
IF_KNOWN = ("tokenizer", "driver")  # older records do not have them, and what is not known is no difference
CLOCKS_APART = 0.03  # of the mean clocks: less is what a warm card does by itself


def differences(base: Sequence[Measurement], candidate: Sequence[Measurement], *, live: bool) -> tuple[Difference, ...]:
    """Of two sides; ``live`` where both were measured now. A side that is not alike in itself is a difference too.

    None where a side has no run at all: what it would have been measured with is not known.
    """
    found: list[Difference] = []
    if not base or not candidate:
        return ()
    for name, weight, aspect in ASPECTS:
        ours, theirs = values(base, aspect), values(candidate, aspect)
        if name in IF_KNOWN and None in (*ours, *theirs):
            continue
        if ours == theirs and len(ours) == 1:
            continue
        shown = changed(ours[0], theirs[0]) if len(ours) == len(theirs) == 1 else (several(ours), several(theirs))
        found.append(
            Difference(
                name=name, base=shown[0], candidate=shown[1],
                weight="told" if live and weight == "must be meant" else weight,
            )
        )  # fmt: skip
    return (*found, *of_clocks(base, candidate))


def of_clocks(base: Sequence[Measurement], candidate: Sequence[Measurement]) -> Iterator[Difference]:
    """Of the GPUs, where both sides know them. They explain a change, and may be one's effect: so they are only told."""
    sides = [[v for r in runs if (v := r.telemetry.get("sm_mhz"))] for runs in (base, candidate)]
    if all(sides):
        ours, theirs = (math.fsum(side) / len(side) for side in sides)
        if abs(theirs / ours - 1) > CLOCKS_APART:
            yield Difference(name=CLOCKS, base=f"{ours:.0f} MHz", candidate=f"{theirs:.0f} MHz", weight="told")


def values(runs: Sequence[Measurement], aspect: Callable[[Measurement], Any]) -> list[Any]:
    found: list[Any] = []
    for run in runs:
        value = json.loads(json.dumps(aspect(run), default=str))  # a tuple is a list once it was stored
        if value not in found:
            found.append(value)
    return found


def several(found: Sequence[Any]) -> str:
    return words(found[0]) if len(found) == 1 else f"{len(found)} different ones"


def changed(base: Any, candidate: Any) -> tuple[str, str]:
    """Of dictionaries only what differs."""
    if not isinstance(base, Mapping) or not isinstance(candidate, Mapping):
        return words(base), words(candidate)
    names = sorted(n for n in base.keys() | candidate.keys() if base.get(n) != candidate.get(n))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    sides = [", ".join(f"{n} {words(side.get(n))}" for n in names[:SHOWN]) + more for side in (base, candidate)]
    return sides[0], sides[1]


def require_allowed(found: Sequence[Difference], allow: Sequence[str]) -> tuple[str, ...]:
    """Names that stand in the way of a verdict. Raises UsageError for what forbids the comparison, and unknown names."""
    for name in allow:
        if name not in NAMES:
            raise UsageError(f"--allow {name!r} is no difference", hint=nearest(name, NAMES))
    for one in found:
        if one.weight == "forbids" and one.name not in allow:
            raise UsageError(
                f"the two sides have another {one.name}: {one.base} against {one.candidate}",
                hint=HINTS[one.name],
            )
    return tuple(one.name for one in found if one.weight == "must be meant" and one.name not in allow)


HINTS = {
    "machine": "measure both here; or --allow machine: then only what needs no clock is compared",
    "workload": "measure both alike, or --allow workload if you know that they are",
    "definitions": "measure the older one again with this llmopt, or --allow definitions",
}
