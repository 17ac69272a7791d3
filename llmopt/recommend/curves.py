"""Load curves as columns: the runs of one configuration at one load are a point, and its figures are medians over them.

Shares of requests are of the requests of all runs together: a median would hide the one run that failed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llmopt.core.domain import Evidence, stable_hash
from llmopt.core.run_table import RunTable
from llmopt.recommend.cost import COSTS, TOKENS_OF_A_PRICE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EVIDENCE: tuple[Evidence, ...] = ("measured", "interpolated", "estimated")  # best first
PEAKS = ("peak_rss_bytes", "peak_vram_bytes")
# A run that never got steady has no steady rate: its repeats still have theirs, and the doubt stays in the merged verdict.
# Any other figure that one run lacks is unknown: a tail that is missing may be missing because it is bad.
STEADY_RATES = ("output_tps", "total_tps", "requests_per_s")
SHARES_OF_REQUESTS = ("error_rate", "slo_attainment")
NO_MEDIANS = (*PEAKS, *SHARES_OF_REQUESTS, *COSTS)
SECONDS_OF_AN_HOUR = 3600.0


class Curves:
    """The points of all configurations of a table; ``members`` of point ``n`` are the rows of its usable runs.

    Of a configuration only the runs of the newest engine version count, and only those of its best evidence; of a point
    only those that are not invalid, where there is one.  ``superseded``: how many runs that leaves out, by what.
    """

    def __init__(self, table: RunTable, rows: NDArray[np.int64], price_per_hour: float | None = None) -> None:
        import numpy as np

        self.table, self.price_per_hour = table, price_per_hour
        self.superseded: dict[str, int] = {}
        configuration = table.codes["configuration"][rows]
        rows = rows[np.lexsort((table.run_ids[rows], table.started_at[rows], configuration))]
        rows = self._newest(rows)
        level = np.nan_to_num(table.column("level")[rows], nan=-1.0)
        configuration = table.codes["configuration"][rows]
        order = np.lexsort((np.arange(len(rows)), level, configuration))
        rows, level, configuration = rows[order], level[order], configuration[order]
        point = np.cumsum(np.r_[False, (np.diff(configuration) != 0) | (np.diff(level) != 0)])[: len(rows)]
        good = self._word("status", rows, "invalid", unequal=True)
        good |= ~np.isin(point, point[good])
        self.members, point = rows[good], point[good]
        self.starts = np.flatnonzero(np.r_[True, np.diff(point) != 0]) if len(point) else np.zeros(0, np.int64)
        self.counts = np.diff(np.r_[self.starts, len(self.members)])
        self.segment = np.repeat(np.arange(len(self.starts)), self.counts)
        self.blocks = blocks(self.starts, self.counts)
        self.configuration = table.codes["configuration"][self.members[self.starts]]
        self.invalid = ~self._word("status", self.members[self.starts], "invalid", unequal=True)
        self._medians: dict[str, list[float]] = {}
        self._identities: dict[int, dict[str, Any]] = {}
        self._artifacts: dict[int, dict[str, Any]] = {}
        self._proofs: NDArray[np.int64] | None = None
        self._shown = [name for name in table.numbers if name not in NO_MEDIANS]
        self._cut: dict[int, NDArray[np.float64]] = {}

    def identity(self, configuration: int) -> dict[str, Any]:
        """What makes a configuration: ``name``, ``artifact``, ``serve``, and where unlike runs were forced together ``context``."""
        if configuration not in self._identities:
            self._identities[configuration] = json.loads(self.table.vocabulary["configuration"][configuration])
        return self._identities[configuration]

    def key(self, configuration: int) -> str:
        return stable_hash(self.table.vocabulary["configuration"][configuration])

    def artifact(self, code: int) -> dict[str, Any]:
        """As its runs record it."""
        if code not in self._artifacts:
            self._artifacts[code] = json.loads(self.table.vocabulary["artifact"][code])
        return self._artifacts[code]

    def proof_row(self, configuration: int) -> int | None:
        """The newest run of a configuration that knows its quality."""
        import numpy as np

        if self._proofs is None:
            rows = self.members[~np.isnan(self.table.column("kl")[self.members])]
            rows = rows[np.lexsort((self.table.run_ids[rows], self.table.started_at[rows]))]
            self._proofs = np.full(len(self.table.vocabulary["configuration"]), -1)
            self._proofs[self.table.codes["configuration"][rows]] = rows
        row = int(self._proofs[configuration])
        return None if row < 0 else row

    def _word(self, name: str, rows: NDArray[np.int64], word: str, *, unequal: bool = False) -> NDArray[np.bool_]:
        import numpy as np

        known = self.table.vocabulary[name]
        code = known.index(word) if word in known else -1
        same = self.table.codes[name][rows] == code
        return ~same if unequal else np.asarray(same)

    def _newest(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """``rows`` by configuration and start, without those of older engines and lesser evidence."""
        import numpy as np

        rank = np.array([EVIDENCE.index(word) for word in self.table.vocabulary["evidence"]], np.int64)
        evidence, configuration = rank[self.table.codes["evidence"][rows]], self.table.codes["configuration"][rows]
        best = np.full(len(self.table.vocabulary["configuration"]), len(EVIDENCE))
        np.minimum.at(best, configuration, evidence)
        keep = evidence == best[configuration]
        self._superseded("estimates where there are measurements", keep)
        rows, configuration = rows[keep], configuration[keep]
        version = self.table.codes["version"][rows]
        newest = np.zeros(len(best), np.int64)
        newest[configuration] = version  # the last of each wins, and they are in the order of their start
        self._superseded("an older version of the engine", version == newest[configuration])
        return np.asarray(rows[version == newest[configuration]])

    def _superseded(self, words: str, keep: NDArray[np.bool_]) -> None:
        if count := int((~keep).sum()):
            self.superseded[words] = count

    def __len__(self) -> int:
        return len(self.starts)

    def medians(self, column: str) -> list[float]:
        """Of every point, NaN where it is unknown; of a peak the highest, of a share of requests that of all."""
        if column not in self._medians:
            found = self._pooled(column) if column in SHARES_OF_REQUESTS else self._median(column)
            self._medians[column] = self._derived(column) or found.tolist()
        return self._medians[column]

    def known(self, column: str, point: int) -> float | None:
        """The median of one point; ``None`` where it is unknown."""
        if column not in self._medians and column not in self.table.numbers and column not in COSTS:
            return None
        found = self.medians(column)[point]
        return None if found != found else found

    def figures(self, point: int) -> dict[str, float | None]:
        """``known`` of every column at once, for the few points that are shown: a hundred medians of all points take longer
        than all the rest of a ranking.
        """
        import numpy as np

        if point not in self._cut:
            self.cut([point])
        values = self._cut[point]
        needed = np.array([1 if name in STEADY_RATES else values.shape[1] for name in self._shown])
        found = zip(self._shown, medians(values, needed).tolist(), strict=True)
        told = {name: None if value != value else value for name, value in found}
        return told | {name: self.known(name, point) for name in NO_MEDIANS}

    def cut(self, points: Sequence[int]) -> None:
        """Take the runs of these points out of every column that ``figures`` asks of, for all of them at once.

        One column fits into a processor's cache, a hundred do not: point by point that was a quarter of a whole ranking.
        """
        import numpy as np

        rows = np.concatenate([self.rows(point) for point in points])
        values = np.empty((len(self._shown), len(rows)))
        for line, name in zip(values, self._shown, strict=True):
            line[:] = self.table.values(name, rows)
        ends = np.cumsum(self.counts[points])
        self._cut = dict(zip(points, np.split(values, ends[:-1], axis=1), strict=True))

    def _median(self, column: str) -> NDArray[np.float64]:
        import numpy as np

        values = self.table.values(column, self.members)
        if not len(values):
            return values
        if column in PEAKS:
            return np.asarray(np.fmax.reduceat(values, self.starts))
        found, filled = np.empty(len(self)), np.append(values, np.nan)
        for points, places in self.blocks:
            found[points] = medians(filled[places], 1 if column in STEADY_RATES else self.counts[points])
        return found

    def _pooled(self, column: str) -> NDArray[np.float64]:
        """Where a run does not tell how many requests it had, each run counts alike."""
        import numpy as np

        shares, answered, failed = (
            self.table.values(name, self.members) for name in (column, "requests_ok", "requests_failed")
        )
        if not len(shares):
            return shares
        requests = answered + failed
        told = np.add.reduceat(np.isnan(requests), self.starts) == 0
        weights = np.where(told[self.segment], requests, 1.0)
        with np.errstate(invalid="ignore"):
            return np.asarray(np.add.reduceat(shares * weights, self.starts) / np.add.reduceat(weights, self.starts))

    def _derived(self, column: str) -> list[float] | None:
        """Prices per token follow from the throughput of the point."""
        if column not in COSTS:
            return None
        import numpy as np

        output, total = (np.array(self.medians(name)) for name in ("output_tps", "total_tps"))
        rates = {"cost": output, "cost_input": total - output, "cost_blended": total}[column]
        price = np.nan if self.price_per_hour is None else self.price_per_hour
        with np.errstate(divide="ignore", invalid="ignore"):
            found = price / SECONDS_OF_AN_HOUR / np.where(rates > 0, rates, np.nan) * TOKENS_OF_A_PRICE
        return list(found.tolist())

    def rows(self, point: int) -> NDArray[np.int64]:
        """The usable runs of a point, oldest first."""
        start = self.starts[point]
        return self.members[start : start + self.counts[point]]


def medians(values: NDArray[np.float64], needed: NDArray[np.int64] | int) -> NDArray[np.float64]:
    """Of each row; NaN where fewer than ``needed`` of its values are known.

    Rows of a table are sorted in a tenth of the time that np.lexsort takes for one long column.
    """
    import numpy as np

    ordered, known = np.sort(values, axis=1), np.count_nonzero(~np.isnan(values), axis=1)  # NaN last
    row, last = np.arange(len(values)), values.shape[1] - 1
    middle = (ordered[row, np.maximum(known - 1, 0) // 2] + ordered[row, np.minimum(known // 2, last)]) / 2
    return np.asarray(np.where(known >= needed, middle, np.nan))


def blocks(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Points of about as many runs, as the rows of one table: which they are, and the places of their runs, filled up with -1.

    Alike up to a power of two, so that one point of very many runs makes no table wide that has many rows.
    """
    import numpy as np

    found, sizes = [], np.frexp(counts)[1]
    for size in np.unique(sizes):
        points = np.flatnonzero(sizes == size)
        place = np.arange(counts[points].max())
        found.append((points, np.where(place < counts[points, None], starts[points, None] + place, -1)))
    return found
