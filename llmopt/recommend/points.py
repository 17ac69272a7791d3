"""One configuration at one load: a point of its curve, with everything that its runs say."""

from __future__ import annotations

import json
import math
import statistics as st
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from llmopt.core.domain import Doubt, Evidence, Measurement, Verdict
from llmopt.core.load_level import level_words, past_saturation
from llmopt.core.metrics import METRICS, Metric
from llmopt.core.run_record import QUALITY
from llmopt.core.run_row import STATS
from llmopt.core.run_table import RunTable
from llmopt.core.statistics import relative_spread
from llmopt.recommend.cost import COSTS, TOKENS_OF_A_PRICE
from llmopt.recommend.curves import SECONDS_OF_AN_HOUR, Curves
from llmopt.recommend.scores import UNKNOWN, Score, scores_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NOISY_SPREAD = 0.10


def column_of(metric: Metric, statistic: str | None) -> str:
    return metric.name if metric.name in QUALITY else f"{metric.key}.{statistic}" if statistic else metric.key


SPREADS = {m.key: {s: f"{m.key}.{s}" for s in STATS} for m in METRICS.values() if m.kind == "distribution"}
SINGLES = {m.key: column_of(m, None) for m in METRICS.values() if m.kind == "scalar" and m.name != "task_score"}


@dataclass(frozen=True, kw_only=True)
class Point:
    """Number ``number`` of ``curves``; everything about it is made when it is asked for."""

    curves: Curves
    number: int

    def value(self, name: str, statistic: str | None = None) -> float | None:
        """The median over the runs; ``None`` where it is unknown."""
        if name == "task_score":
            return self.task_scores.get(statistic or "", UNKNOWN).value
        return self.curves.known(column_of(METRICS[name], statistic), self.number)

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        return self.curves.rows(self.number)

    @property
    def newest(self) -> int:
        return int(self.rows[-1])

    @cached_property
    def record(self) -> Measurement:
        """Of the newest run."""
        return self.curves.table.record(self.newest)

    def values(self, name: str, statistic: str | None = None) -> list[float]:
        """Of every run that has one; a run's own cost follows from its own throughput."""
        import numpy as np

        if name in COSTS:
            return self._costs(name)
        found = self.curves.table.values(column_of(METRICS[name], statistic), self.rows)
        return list(found[~np.isnan(found)].tolist())

    def _costs(self, name: str) -> list[float]:
        price = self.curves.price_per_hour
        output, total = self.values("output_tps"), self.values("total_tps")
        if name != "cost" and len(output) != len(total):
            return []
        rates = {
            "cost": output,
            "cost_input": [t - o for t, o in zip(total, output, strict=False)],
            "cost_blended": total,
        }
        each = [r for r in rates[name] if r > 0]
        return [] if price is None else [price / SECONDS_OF_AN_HOUR / r * TOKENS_OF_A_PRICE for r in each]

    def own_interval(self, name: str) -> tuple[float, float] | None:
        """The widest of the intervals that the runs have within themselves."""
        import numpy as np

        low, high = (self.curves.table.values(f"interval.{name}.{end}", self.rows) for end in ("low", "high"))
        if np.isnan(low).all():
            return None
        return float(np.nanmin(low)), float(np.nanmax(high))

    @property
    def runs(self) -> int:
        return len(self.rows)

    @property
    def level(self) -> float | None:
        found = float(self.curves.table.values("level", self.rows[-1:])[0])
        return None if found != found else found

    @cached_property
    def workload(self) -> dict[str, Any]:
        """The shape with the level; how long the runs lasted is left out."""
        form: dict[str, Any] = json.loads(self.curves.table.word("shape", self.newest))
        named = {"closed": "concurrency", "open": "rate"}.get(str(form["load"]))
        return form | ({named: self.level} if named else {})

    @property
    def load(self) -> str:
        return level_words(self.workload)

    @property
    def invalid(self) -> bool:
        return bool(self.curves.invalid[self.number])

    @cached_property
    def codes(self) -> set[str]:
        """Of all doubts of all runs."""
        table = self.curves.table
        return {
            c
            for row in set(table.codes["doubts"][self.rows].tolist())
            for c in table.vocabulary["doubts"][row].split(",")
            if c
        }

    @property
    def saturated(self) -> bool:
        """Whether an open loop asked for more than the server can do. Of a closed loop the whole curve tells."""
        if self.workload["load"] != "open" or self.level is None:
            return False
        rate = self.level
        if "held_back" not in self.codes:  # by a cap, which sends no more than the server answers
            sent = self.curves.table.values("achieved_rate", self.rows)
            rate = min(rate, *sent[sent == sent].tolist(), math.inf)  # what chance, or a slow client, really asked
        return past_saturation(rate, self.value("requests_per_s"), self.codes)

    @property
    def evidence(self) -> Evidence:
        return self.curves.table.word("evidence", self.newest)  # type: ignore[return-value]

    @cached_property
    def task_scores(self) -> dict[str, Score]:
        """By name."""
        return task_scores(self.curves.table, self.rows)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """All figures as a record has them."""
        known, found = self.curves.figures(self.number).get, dict[str, Any]()
        for key, columns in SPREADS.items():
            spread = {s: known(column) for s, column in columns.items()}
            found[key] = spread if any(v is not None for v in spread.values()) else None
        for key, column in SINGLES.items():
            found[key] = known(column)
        return found | {"task_score": {name: score.value for name, score in self.task_scores.items()} or None}

    @cached_property
    def verdict(self) -> Verdict:
        """The worst of the runs, each reason once, and whether the runs disagree among themselves."""
        import numpy as np

        table, reasons = self.curves.table, dict[str, Doubt]()
        # Of runs with the same doubts the newest says it for all; there may be thousands of them.
        _, newest = np.unique(table.codes["doubts"][self.rows[::-1]], return_index=True)
        for row in self.rows[::-1][np.sort(newest)].tolist():
            if set(filter(None, table.word("doubts", row).split(","))) - set(reasons):
                reasons = {d.code: d for d in table.record(row).verdict.reasons} | reasons
        throughputs = self.values("output_tps")
        spread = spread_of_three(throughputs)
        if spread is not None and spread > NOISY_SPREAD:
            reasons["machine_noisy"] = Doubt(
                code="machine_noisy",
                severity="suspect",
                message=f"throughput differs by {spread:.0%} between {len(throughputs)} runs",
                remedy="close other programs, or add repeats",
            )
        return Verdict.of(tuple(reasons.values()))


def spread_of_three(values: Sequence[float]) -> float | None:
    """The relative spread of up to three values; of more, what three of them would show: a range grows with their number.

    The mean range of three normal values is 1.69 standard deviations (Tippett 1925).
    """
    if len(values) <= 3:
        return relative_spread(values)
    mean = st.fmean(values)
    # statistics.stdev reckons in fractions: a hundred times as long, for what is told in whole per cent.
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return 1.69 * deviation / mean if mean else None


def task_scores(table: RunTable, rows: Iterable[int]) -> dict[str, Score]:
    """Of the newest of these runs whose artifact was given tasks."""
    if table.vocabulary["tasks"] == [""]:
        return {}
    for row in reversed(list(rows)):
        if words := table.word("tasks", row):
            return scores_of(json.loads(words))
    return {}
