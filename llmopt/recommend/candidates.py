"""From stored runs to candidates: what may be compared, and every configuration with its load curve."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from llmopt.core.domain import IMPORTED, Evidence, Measurement, Verdict, stable_hash
from llmopt.core.errors import Inconclusive
from llmopt.core.metrics import METRICS, parse_metric
from llmopt.core.run_record import QUALITY
from llmopt.core.run_table import RunTable, table_of
from llmopt.core.statistics import outside
from llmopt.recommend.curves import EVIDENCE, PEAKS, SHARES_OF_REQUESTS, Curves
from llmopt.recommend.points import Point, task_scores
from llmopt.recommend.scores import UNKNOWN, Score
from llmopt.recommend.ties import over_requests, over_runs

OF_SLOS = ("goodput_rps", "goodput_rps_whole", "slo_attainment")  # say nothing beside those of other SLOs
INTERVALS = ("output_tps", "ttft_p50", "ttft_p95", "tps_p50", "e2e_p50", "peak_rss_bytes", "peak_vram_bytes")
WILSON = "requests (Wilson)"  # as the runs themselves have it (llmopt.core.metrics)
# What must be alike, and how runs that differ in it are called; the first that differs names them.
CONTEXT = {
    "machine": "another machine",
    "base": "another model",
    "revision": "other definitions of the metrics (measured by another version)",
    "loop": "another loop (closed, open, ramp or trace)",
    "shape": "another workload",
}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One configuration with its load curve, by rising load, and the point ``at`` which it is judged.

    ``why``: how that point was chosen.  ``apart``: what tells it from others of the same name.
    """

    curves: Curves
    points: tuple[Point, ...]
    at: int = 0
    why: str = ""
    apart: str = ""
    known: dict[tuple[int, str], dict[str, Any] | None] = field(default_factory=dict)

    @property
    def point(self) -> Point:
        return self.points[self.at]

    @cached_property
    def configuration(self) -> int:
        return int(self.curves.configuration[self.point.number])

    @property
    def identity(self) -> dict[str, Any]:
        return self.curves.identity(self.configuration)

    @cached_property
    def key(self) -> str:
        return self.curves.key(self.configuration)

    @property
    def name(self) -> str:
        return f"{self.identity['name']} on {self.backend}"

    @cached_property
    def label(self) -> str:
        return self.name + (f", {self.apart}" if self.apart else "")

    @cached_property
    def backend(self) -> str:
        return str(self.identity["serve"].get("backend"))

    @property
    def artifact(self) -> dict[str, Any]:
        return self.curves.artifact(int(self.curves.table.codes["artifact"][self.point.newest]))

    @property
    def evidence(self) -> Evidence:
        return self.point.evidence

    @property
    def runs(self) -> int:
        return self.point.runs

    @property
    def invalid(self) -> bool:
        return self.point.invalid

    def value(self, name: str, statistic: str | None = None) -> float | None:
        """At the chosen point; quality is the artifact's at any."""
        return self.value_at(self.at, name, statistic)

    def value_at(self, place: int, name: str, statistic: str | None = None) -> float | None:
        """A peak is the highest up to this load: caches grow, and memory must suffice for the way there too."""
        if name in PEAKS:
            way = [p for p in self.points[: place + 1] if not p.invalid] or [self.points[place]]
            return max((v for p in way if (v := p.value(name)) is not None), default=None)
        if name == "task_score":
            return self.task_scores.get(statistic or "", UNKNOWN).value
        if name in QUALITY:
            row = self.curves.proof_row(self.configuration)
            found = float("nan") if row is None else float(self.curves.table.column(name)[row])
            return None if found != found else found
        return self.points[place].value(name, statistic)

    @cached_property
    def task_scores(self) -> dict[str, Score]:
        return task_scores(self.curves.table, [row for p in self.points for row in p.rows])

    @cached_property
    def quality(self) -> dict[str, Any] | None:
        """Of the newest run that has any."""
        row = self.curves.proof_row(self.configuration)
        return None if row is None else self.curves.table.record(row).quality

    @cached_property
    def metrics(self) -> dict[str, Any]:
        return self.point.metrics | {name: self.value(name) for name in PEAKS} | self.of_the_artifact

    @cached_property
    def of_the_artifact(self) -> dict[str, Any]:
        """Its quality, which is the same at every load, whichever run holds it."""
        scores = {name: score.value for name, score in self.task_scores.items()} or None
        return {name: self.value(name) for name in QUALITY} | {"task_score": scores}

    @cached_property
    def intervals(self) -> dict[str, Any]:
        return {name: self.interval(name) for name in INTERVALS}

    def interval(self, name: str) -> dict[str, Any] | None:
        """95 %, of the chosen point; found once."""
        if (self.at, name) not in self.known:
            self.known[self.at, name] = self._interval(name)
        return self.known[self.at, name]

    def _interval(self, name: str) -> dict[str, Any] | None:
        """95 %: over runs where there are three or more; else the widest of the runs' own. ``name`` with its statistic.

        Of quality its own, over windows of the text; of shares of requests over all of them; of a peak, the highest that
        was seen, none.
        """
        metric, statistic = (
            parse_metric(name, bare_distribution=True) if name != "task_score" else (METRICS[name], None)
        )
        if metric.name in ("kl", "top1", "perplexity"):
            bounds = (self.quality or {}).get(f"{QUALITY[metric.name].removesuffix('_agreement')}_interval")
            figure = self.value(metric.name)
            if not bounds or figure is None or outside(figure, *bounds):
                return None
            return {"low": bounds[0], "high": bounds[1], "over": "windows of text"}
        point = self.point
        if metric.name in PEAKS:
            return None
        if metric.name in SHARES_OF_REQUESTS:
            own = point.own_interval(name)
            pooled = self.share_interval(metric.name)
            return pooled or ({"low": own[0], "high": own[1], "over": WILSON} if own else None)
        values = point.values(metric.name, statistic)
        complete = len(values) == point.runs or metric.name in ("output_tps", "total_tps", "requests_per_s", "cost")
        if complete and (bounds := over_runs(values)) is not None:
            return {"low": bounds[0], "high": bounds[1], "over": "runs"}
        if metric.name in ("cost", "cost_blended", "cost_input"):
            return self.cost_interval(metric.name)
        own = point.own_interval(name)
        return {"low": own[0], "high": own[1], "over": "blocks"} if own else None

    def share_interval(self, name: str) -> dict[str, Any] | None:
        """Three runs without a failure show no more than that failures are rare."""
        shares, answered, failed = (
            self.curves.table.values(n, self.point.rows) for n in (name, "requests_ok", "requests_failed")
        )
        counts = answered + failed
        shown = self.point.value(name)
        if shown is None or (shares + counts != shares + counts).any():
            return None
        low, high = over_requests(shares.tolist(), counts.tolist(), shown)
        return {"low": low, "high": high, "over": WILSON}

    def cost_interval(self, name: str) -> dict[str, Any] | None:
        """As uncertain as the throughput that it follows from."""
        rate, bounds, cost = self.value("output_tps"), self.point.own_interval("output_tps"), self.value(name)
        if not rate or not bounds or not cost or bounds[0] <= 0:
            return None
        return {"low": cost * rate / bounds[1], "high": cost * rate / bounds[0], "over": "blocks"}

    @property
    def verdict(self) -> Verdict:
        return self.point.verdict

    @cached_property
    def case(self) -> dict[str, Any]:
        newest = self.point.record
        backend = {name: newest.backend.get(name) for name in ("name", "version", "argv", "note")}
        return {"artifact": newest.artifact, "serve": newest.serve, "workload": newest.workload, "backend": backend}


@dataclass(frozen=True, kw_only=True)
class Comparable:
    """The candidates of one machine, model and shape of workload; ``left_out``: how many runs are in none of them, and why."""

    candidates: tuple[Candidate, ...]
    machine: dict[str, Any]
    workload: dict[str, Any]
    base: str
    left_out: dict[str, int] = field(default_factory=dict)
    forced: bool = False


def comparable(
    runs: Sequence[Measurement] | RunTable, *, force: bool = False, price_per_hour: float | None = None
) -> Comparable:
    """What may be ranked together: machine, model, definitions, loop and workload as of the newest run, at any load.

    ``force`` puts all runs together, and every candidate says what it was measured with.  Raises Inconclusive.
    """
    import numpy as np

    table = runs if isinstance(runs, RunTable) else table_of(runs)
    if not len(table):
        raise Inconclusive(
            "there is no run to recommend from", hint="measure something first: llmopt bench, or llmopt demo"
        )
    own = ~np.char.startswith(
        table.run_ids, IMPORTED.encode()
    )  # what was imported never decides what ours are compared with
    newest = int(np.lexsort((table.run_ids, table.started_at, own))[-1])
    left_out, same = dict[str, int](), np.ones(len(table), bool)
    for name, words in CONTEXT.items():
        alike = table.codes[name] == table.codes[name][newest]
        if count := int((same & ~alike).sum()):
            left_out[words] = count
        same &= alike
    if force:
        table = apart_by_context(table)
        same[:] = True
    only_of_these_slos(table, newest)
    curves = Curves(table, np.flatnonzero(same), price_per_hour)
    run = table.record(newest)
    return Comparable(
        candidates=candidates_of(curves),
        machine=asdict(run.machine),
        workload=run.workload,
        base=run.artifact.get("base_name", ""),
        left_out=({} if force else left_out) | curves.superseded,
        forced=force and bool(left_out),
    )


def apart_by_context(table: RunTable) -> RunTable:
    """Runs of unlike contexts are unlike configurations, each of which names its own."""
    import numpy as np

    names = [name for name in CONTEXT if len(np.unique(table.codes[name])) > 1]
    keys = np.stack([table.codes["configuration"], *(table.codes[name] for name in names)])
    unlike, codes = np.unique(keys, axis=1, return_inverse=True)
    words = []
    for column in unlike.T:
        known = json.loads(table.vocabulary["configuration"][column[0]])
        context = {name: table.vocabulary[name][code] for name, code in zip(names, column[1:], strict=True)}
        words.append(json.dumps(known | {"context": context}, sort_keys=True))
    return replace(
        table,
        codes=table.codes | {"configuration": codes.reshape(-1).astype(np.int32)},
        vocabulary=table.vocabulary | {"configuration": words},
    )


def only_of_these_slos(table: RunTable, newest: int) -> None:
    """What counts requests that met an SLO says something only beside others of the same SLOs: the newest run's."""
    import numpy as np

    strange = table.codes["slos"] != table.codes["slos"][newest]
    for name in OF_SLOS if strange.any() else ():
        table.seen[name] = np.where(strange, np.nan, table.column(name))


def candidates_of(curves: Curves) -> tuple[Candidate, ...]:
    grouped: dict[int, list[Point]] = defaultdict(list)
    for number, configuration in enumerate(curves.configuration.tolist()):
        grouped[configuration].append(Point(curves=curves, number=number))
    found = [Candidate(curves=curves, points=tuple(points)) for points in grouped.values()]
    return told_apart(found)


def told_apart(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """With what those of one name differ in: options, artifact, and where that was forced, context."""
    alike: dict[str, list[Candidate]] = defaultdict(list)
    for c in candidates:
        alike[c.name].append(c)
    found = list[Candidate]()
    for group in alike.values():
        parts = [traits(c) for c in group]
        names = sorted({n for own in parts for n in own})
        differ = [n for n in names if len({own.get(n, "default") for own in parts}) > 1]
        for c, own in zip(group, parts, strict=True):
            words = [f"{n} {own.get(n, 'default')}" for n in differ]
            found.append(replace(c, apart=", ".join(words)) if words else c)
    return tuple(found)


def traits(candidate: Candidate) -> dict[str, str]:
    """What can tell a configuration from one of its name, in words; long ones by a hash."""
    identity = candidate.identity
    artifact = {"artifact": str(identity["artifact"].get("key") or stable_hash(identity["artifact"]))[:6]}
    context = {n: str(v) if len(str(v)) < 20 else stable_hash(v, 6) for n, v in identity.get("context", {}).items()}
    return {n: str(v) for n, v in identity["serve"].items()} | artifact | context


def merge(key: str, runs: Sequence[Measurement]) -> Candidate:
    """All runs as one point, whatever their load: the figures of one step. ``key`` names it in errors alone."""
    import numpy as np

    table = table_of(runs)
    if len({table.word("configuration", row) for row in range(len(table))}) > 1:
        raise ValueError(f"the runs of {key} are of several configurations")
    table.seen["level"] = np.full(len(table), np.nan)
    curves = Curves(table, np.arange(len(table)))
    (found,) = candidates_of(curves)
    return found


__all__ = ["CONTEXT", "EVIDENCE", "INTERVALS", "Candidate", "Comparable", "comparable", "merge"]
