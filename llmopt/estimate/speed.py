"""Figures of speed with their intervals: what roofline, factors and queue say of a question, at the asked load and at others.

An interval holds nine of ten: the uncertainty of every factor, carried through the model by its slopes, and the error of the
model itself, which is the table's guess until runs of the device show it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from llmopt.estimate.activations import STEPWISE, usual_step
from llmopt.estimate.efficiency import Coordinate, Group, Knowledge, coordinates, group_of, known, variance
from llmopt.estimate.memory import Case, Memory
from llmopt.estimate.neighbours import corrected, place_of
from llmopt.estimate.prices import INTERRUPTED, Price, per_million
from llmopt.estimate.queueing import SATURATED, Queue, queue_at
from llmopt.estimate.roofline import Demand, Peak, Times, demand_of, times, with_draft, work_of

EVIDENCE = "estimated"
COVERED, DEVIATIONS = 0.9, 1.645
MOST, MOST_ON_CPU = (
    256,
    32,
)  # sequences at once that are looked at: of engines without a limit, and where memory is not known
KNEE = 0.95  # of the highest throughput: what reaches it with the fewest sequences is the best batch
SLOPE_STEP = 0.02
NOTHING_MEASURED = Knowledge()
FIGURES = ("ttft_s", "itl_s", "tps", "e2e_s", "output_tps", "requests_per_s", "prefill_tps")


@dataclass(frozen=True, kw_only=True)
class Draft:
    """Speculative decoding: ``acceptance`` is the chance that a proposed token is kept, ``None`` where nobody knows it."""

    tokens: int
    acceptance: float | None = None
    bytes: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Question:
    """``rate``: requests a second of an open loop; ``most``: sequences that memory and the engine's settings allow."""

    case: Case
    peak: Peak
    knowledge: Knowledge = NOTHING_MEASURED
    most: int = MOST
    rate: float | None = None
    draft: Draft | None = None
    price: Price | None = None

    @functools.cached_property
    def group(self) -> Group:
        return group_of(self.case.backend, self.case.layout, self.peak.kind)

    @functools.cached_property
    def work(self) -> Any:
        return work_of(self.case)

    @functools.cached_property
    def demands(self) -> dict[int, Demand]:
        return {}

    def demand(self, batch: int) -> Demand:
        if batch not in self.demands:
            draft, link = self.draft, self.peak.link
            if draft is None or draft.acceptance is None:
                self.demands[batch] = demand_of(self.work, batch, link)
            else:
                self.demands[batch] = with_draft(
                    self.work, batch, link, tokens=draft.tokens, acceptance=draft.acceptance, draft_bytes=draft.bytes
                )
        return self.demands[batch]

    def at(
        self, batch: int, moved: dict[Coordinate, float] | None = None, device: tuple[float, float] = (1, 1)
    ) -> Times:
        """``moved``: factors, and ``device``: its bandwidth and operations, that are tried elsewhere."""
        demand = self.demand(batch)
        found = times(
            demand, self.peak.bandwidth * device[0], self.peak.computing(self.case.layout.name) * device[1],
            self.knowledge.factors(self.group, moved),
        )  # fmt: skip
        return corrected(found, place_of(self.group, demand), self.knowledge.neighbours)


def question(case: Case, peak: Peak, memory: Memory, **more: Any) -> Question:
    cpu, devices, load = peak.kind == "cpu", case.devices, case.load
    usual = MOST
    if case.backend in STEPWISE:
        _, usual = usual_step(devices.memory_bytes, devices.name, cpu=cpu, sharing=devices.tensor_parallel)
    room = memory.max_concurrency
    if room is None:
        room = max(min(usual, MOST_ON_CPU) if cpu else usual, load.sequences)
    return Question(case=case, peak=peak, most=min(room, load.max_num_seqs or max(usual, load.sequences)), **more)


def cannot_say(asked: Question) -> str:
    """Why there is no speed, in words; empty where there is."""
    if not known(asked.group):
        return f"nothing is known of how fast {asked.group.backend} is on a {asked.group.kind}"
    if asked.most < asked.case.load.sequences:
        return "what does not fit has no speed"
    return ""


def speed_document(asked: Question) -> dict[str, Any]:
    """JSON-ready."""
    if reason := cannot_say(asked):
        return {"evidence": EVIDENCE, "device": asked.peak.name, "unknown_because": reason} | dict.fromkeys(
            (*FIGURES, "best_batch", "usd_per_million_output_tokens", "curve")
        )
    batches = powers(asked.most, asked.case.load.sequences)
    queue = None if asked.rate is None else queue_at(asked.rate, asked.at, asked.most)
    users = asked.case.load.sequences if queue is None else max(1, round(queue.in_flight))
    figures = figures_at(asked, users)
    refused = refusal(asked, users, queue)
    if refused:
        figures["ttft_s"] = figures["e2e_s"] = unknown()
    elif queue is not None and queue.ttft_s is not None:
        figures |= with_queue(asked, figures, queue)
    if asked.draft is not None and asked.draft.acceptance is None:
        figures = of_unknown_acceptance(asked, users, figures)
    best = best_batch(asked, batches)
    return {
        "evidence": EVIDENCE, "interval": COVERED,
        "device": asked.peak.name, "device_source": asked.peak.source,
        "sequences": users, "rate": asked.rate, "utilisation": queue.utilisation if queue else asked.at(users).busy,
        "bound": asked.at(users).bound,
        **figures,
        "best_batch": best,
        **costs(asked, figures, best["value"]),
        "refused": [f"no TTFT: {refused}"] if refused else [],
        "curve": [curve_row(asked, batch) for batch in batches],
        "calibration": calibration_of(asked),
    }  # fmt: skip


def powers(most: int, asked: int) -> list[int]:
    """1, 2, 4, … up to the most that there can be, and what was asked."""
    found = {1 << n for n in range(most.bit_length()) if 1 << n <= most}
    return sorted(found | {min(most, asked), most})


def figures_at(asked: Question, users: int) -> dict[str, dict[str, Any]]:
    values = read_off(asked.at(users), asked.case.load.prompt)
    slopes = slopes_of(asked, lambda at: read_off(at, asked.case.load.prompt), users)
    error = asked.knowledge.model_error(asked.group)
    return {
        name: unknown() if value is None else interval(value, deviation(asked, slopes[name], error))
        for name, value in values.items()
    }


def read_off(at: Times, prompt: int) -> dict[str, float | None]:
    return {
        "ttft_s": at.ttft_s, "itl_s": at.itl_s, "tps": 1 / at.itl_s, "e2e_s": at.e2e_s if at.requests_per_s else None,
        "output_tps": at.output_tps, "requests_per_s": at.requests_per_s, "prefill_tps": prompt / at.prefill_s,
    }  # fmt: skip


Slopes = list[tuple[Coordinate | None, float]]


def slopes_of(asked: Question, read: Callable[[Times], dict[str, float | None]], users: int) -> dict[str, Slopes]:
    """Of the logarithm of each figure by each factor, and by the device's peaks (``None``) where these are a guess."""
    base = read(asked.at(users))
    found: dict[str, Slopes] = {name: [] for name in base}
    tried: list[tuple[Coordinate | None, Times]] = [
        (c, asked.at(users, {c: asked.knowledge.found.get(c, 0.0) + SLOPE_STEP})) for c in coordinates(asked.group)
    ]
    step = math.exp(SLOPE_STEP)
    tried += [(None, asked.at(users, device=(step, 1))), (None, asked.at(users, device=(1, step)))]
    for coordinate, at in tried:
        for name, value in read(at).items():
            if value is not None and (before := base[name]) is not None:
                found[name].append((coordinate, math.log(value / before) / SLOPE_STEP))
    return found


def deviation(asked: Question, slopes: Slopes, error: float) -> float:
    """Of the logarithm. What runs taught is relative to the peak that was assumed then, right or wrong."""
    own = variance(asked.knowledge, [(c, slope) for c, slope in slopes if c is not None])
    taught = asked.knowledge.engines.get(asked.group.engine, 0)
    spread = 0.0 if taught else asked.peak.spread
    return math.sqrt(max(0.0, own) + error**2 + sum((slope * spread) ** 2 for c, slope in slopes if c is None))


def interval(value: float, deviation: float) -> dict[str, Any]:
    factor = math.exp(DEVIATIONS * deviation)
    return {"value": value, "low": value / factor, "high": value * factor, "evidence": EVIDENCE}


def unknown() -> dict[str, Any]:
    return {"value": None, "low": None, "high": None, "evidence": EVIDENCE}


# --- what is refused, and what is known within bounds alone -------------------------------------------------------------


def refusal(asked: Question, users: int, queue: Queue | None) -> str:
    """Why no TTFT is predicted; empty where one is."""
    if queue is not None:
        return queue.refused
    busy = asked.at(users).busy
    if users > 1 and busy >= SATURATED:
        return f"prompts take {busy:.0%} of the time of {users} users, near saturation: it hangs on the scheduler, measure it"
    return ""


def with_queue(asked: Question, figures: dict[str, dict[str, Any]], queue: Queue) -> dict[str, dict[str, Any]]:
    """Of an open loop: what was asked is completed, and a request waits before its prompt is read."""
    assert queue.ttft_s is not None
    assert asked.rate is not None
    load, itl, first = asked.case.load, figures["itl_s"]["value"], queue.ttft_s
    shares = {
        name: math.log(figures[name]["high"] / figures[name]["value"]) / DEVIATIONS for name in ("ttft_s", "itl_s")
    }
    whole = first + max(0, load.output - 1) * itl
    waiting = {
        "ttft_s": interval(first, shares["ttft_s"] + queue.utilisation * shares["ttft_s"]),
        "e2e_s": interval(whole, max(shares.values())),
    }
    surely = figures_at(asked, asked.most)["requests_per_s"]["low"]
    if surely <= asked.rate:  # it may be saturated, and then a request waits without end
        waiting = {name: figure | {"high": None} for name, figure in waiting.items()}
    done = min(asked.rate, surely)
    return waiting | {
        "output_tps": completed(asked.rate * load.output, done * load.output),
        "requests_per_s": completed(asked.rate, done),
    }


def completed(value: float, low: float) -> dict[str, Any]:
    """What was asked is done as long as the engine is not saturated, and never more."""
    return {"value": value, "low": low, "high": value, "evidence": EVIDENCE}


def of_unknown_acceptance(asked: Question, users: int, figures: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Between a draft whose every token is thrown away and one whose every token is kept lies everything."""
    assert asked.draft is not None
    ends = [
        figures_at(replace(asked, draft=replace(asked.draft, acceptance=acceptance)), users)
        for acceptance in (0.0, 1.0)
    ]
    found = {}
    for name, figure in figures.items():
        both = [end[name] for end in ends if end[name]["value"] is not None]
        found[name] = figure if name in ("ttft_s", "prefill_tps") or not both else {
            "value": None, "low": min(f["low"] for f in both), "high": max(f["high"] for f in both), "evidence": EVIDENCE,
        }  # fmt: skip
    return found


# --- along the number of sequences ------------------------------------------------------------------------------------


def curve_row(asked: Question, batch: int) -> dict[str, Any]:
    at = asked.at(batch)
    return {
        "batch": batch, "ttft_s": None if batch > 1 and at.busy >= SATURATED else at.ttft_s, "itl_s": at.itl_s,
        "tps": 1 / at.itl_s, "output_tps": at.output_tps, "requests_per_s": at.requests_per_s, "bound": at.bound,
    }  # fmt: skip


def best_batch(asked: Question, batches: list[int]) -> dict[str, Any]:
    """The fewest sequences that reach nearly all of the throughput that memory allows; its bounds by what may be off."""

    def knee(device: tuple[float, float]) -> int:
        rates = {batch: asked.at(batch, device=device).output_tps for batch in batches}
        top = max(rates.values())
        return next(batch for batch in batches if rates[batch] >= KNEE * top)

    off = math.exp(asked.knowledge.model_error(asked.group) + asked.peak.spread)
    found = [knee((1, 1)), knee((off, 1 / off)), knee((1 / off, off))]
    return {"value": found[0], "low": min(found), "high": max(found), "evidence": EVIDENCE}


def costs(asked: Question, figures: dict[str, dict[str, Any]], best: int) -> dict[str, Any]:
    """Of a million output tokens, at the asked load and at the best batch."""
    names = ("usd_per_million_output_tokens", "usd_per_million_output_tokens_at_best_batch")
    if asked.price is None:
        return dict.fromkeys(names, unknown()) | {"price": None}
    price, count = asked.price, asked.case.devices.count if asked.price.source != "as given" else 1
    spot = None
    if price.spot:
        spot = {"low": price.spot[0] * count, "high": price.spot[1] * count, "note": INTERRUPTED}
    return {
        name: cost(price, count, own["output_tps"]) for name, own in zip(names, (figures, figures_at(asked, best)), strict=True)
    } | {"price": {"per_hour": price.per_hour * count, "low": price.low * count, "high": price.high * count,
                   "source": price.source, "spot": spot}}  # fmt: skip


def cost(price: Price, count: int, tps: dict[str, Any]) -> dict[str, Any]:
    """The interval is that of the throughput, at this price: what the price may be stands beside it."""
    bounds = {"value": tps["value"], "low": tps["high"], "high": tps["low"]}
    return {
        end: per_million(price.per_hour * count, rate) if rate else None for end, rate in bounds.items()
    } | {"evidence": EVIDENCE}  # fmt: skip


def calibration_of(asked: Question) -> dict[str, Any]:
    """How many configurations of this device taught the figures, and how far off each was by the others, at the median."""
    knowledge = asked.knowledge
    return {
        "configurations": knowledge.runs, "of_this_engine": knowledge.engines.get(asked.group.engine, 0),
        "left_out_error": {name: knowledge.left_out.get(name) for name in ("itl_s", "output_tps", "ttft_s")},
    }  # fmt: skip
