"""Many runs as columns: what a ranking asks of each of them, without keeping a hundred thousand documents in memory.

Numbers are columns of float64, NaN where a run does not know one: ``ttft_s.p95``, ``output_tps``,
``interval.output_tps.low``.  Words (the machine, the configuration, the doubts) are small integers into a vocabulary.
The whole record of a run is read only when it is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import msgspec

from llmopt.core.domain import Measurement
from llmopt.core.run_record import QUALITY
from llmopt.core.run_row import NUMBERS, WORDS, Row, cache_type, read_row

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def unread(row: int) -> Measurement:
    raise LookupError(f"row {row} has no record behind it")


@dataclass(kw_only=True)
class RunTable:
    """``numbers``: one array a column; ``codes`` and ``vocabulary``: one a word; ``read`` gives the record of a row.

    ``rows`` are those of the arrays that the table consists of, in its order; ``None`` is all of them.
    """

    run_ids: NDArray[np.bytes_]
    started_at: NDArray[np.bytes_]
    numbers: dict[str, NDArray[np.float64]]
    codes: dict[str, NDArray[np.int32]]
    vocabulary: dict[str, list[str]]
    read: Callable[[int], Measurement] = unread
    rows: NDArray[np.int64] | None = None
    proofs: dict[tuple[int, str], dict[str, Any]] = field(default_factory=dict)
    seen: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.run_ids)

    def column(self, name: str) -> NDArray[np.float64]:
        """NaN all the way for a number that no run here has."""
        import numpy as np

        if name not in self.seen:
            found = self.numbers.get(name)
            if found is None:
                self.seen[name] = np.full(len(self), np.nan)
            else:
                self.seen[name] = found if self.rows is None else found[self.rows]
        return self.seen[name]

    def values(self, name: str, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Of these rows alone: cutting a hundred whole columns for a few of their rows takes longer than all that is asked of them."""
        import numpy as np

        if name in self.seen:
            return self.seen[name][rows]
        found = self.numbers.get(name)
        if found is None:
            return np.full(len(rows), np.nan)
        return found[rows if self.rows is None else self.rows[rows]]

    def word(self, name: str, row: int) -> str:
        return self.vocabulary[name][int(self.codes[name][row])]

    def record(self, row: int) -> Measurement:
        """The whole run, with the quality that was filled in."""
        run = self.read(row)
        cache = self.kv_cache_dtype(row)
        proof = None if cache is None else self.proofs.get((int(self.codes["artifact"][row]), cache))
        return replace(run, quality=proof) if proof is not None and run.quality is None else run

    def taken(self, rows: NDArray[np.int64], read: Callable[[int], Measurement]) -> RunTable:
        """These rows, in this order; the columns are cut when they are asked for."""
        return RunTable(
            run_ids=self.run_ids[rows],
            started_at=self.started_at[rows],
            numbers=self.numbers,
            codes={name: column[rows] for name, column in self.codes.items()},
            vocabulary=self.vocabulary,
            read=read,
            rows=rows if self.rows is None else self.rows[rows],
        )

    def same(self, one: int, other: int) -> bool:
        """Whether two rows tell of the same run."""
        import numpy as np

        words = (self.started_at, *self.codes.values())
        return all(c[one] == c[other] for c in words) and all(
            np.array_equal(c[one], c[other], equal_nan=True) for c in map(self.column, self.numbers)
        )

    def kv_cache_dtype(self, row: int) -> str | None:
        """The type of the KV cache that a run was served with; ``None`` where more costs quality (``served_as``)."""
        return cache_type(self.word("configuration", row))

    def fill_quality(self, known: Callable[[dict[str, Any], str], dict[str, Any] | None]) -> None:
        """Ask ``known`` for the quality of every artifact, with its type of KV cache, that has runs without.

        It may have been measured after them.
        """
        import numpy as np

        lacking = np.flatnonzero(np.isnan(self.column("kl")))
        places: dict[tuple[int, str], list[Any]] = {}
        several = len(self.vocabulary["configuration"])
        pairs = self.codes["artifact"][lacking].astype(np.int64) * several + self.codes["configuration"][lacking]
        both, inverse = np.unique(pairs, return_inverse=True)
        for n, (artifact, configuration) in enumerate(divmod(pair, several) for pair in both.tolist()):
            cache = cache_type(self.vocabulary["configuration"][configuration])
            if cache is not None:
                places.setdefault((artifact, cache), []).append(n)
        for (artifact, cache), own in places.items():
            proof = known(json.loads(self.vocabulary["artifact"][artifact]), cache)
            if proof is not None:
                self.proofs[artifact, cache] = proof
                self._fill(lacking[np.isin(inverse, own)], proof)

    def _fill(self, rows: NDArray[np.int64], proof: dict[str, Any]) -> None:
        import numpy as np

        for name, key in QUALITY.items():
            column = self.seen[name] = self.column(name).copy()
            column[rows] = np.nan if proof.get(key) is None else proof[key]
        if proof.get("tasks"):
            self.vocabulary = self.vocabulary | {"tasks": [*self.vocabulary["tasks"], json.dumps(proof["tasks"])]}
            tasks = self.codes["tasks"] = self.codes["tasks"].copy()
            tasks[rows] = len(self.vocabulary["tasks"]) - 1


def table_of(runs: Sequence[Measurement]) -> RunTable:
    """Of runs in memory. Raises msgspec.ValidationError for one that would be no record on disk either."""
    return assemble([read_row(msgspec.json.encode(run)) for run in runs], runs.__getitem__)


def assemble(
    rows: Sequence[Row], read: Callable[[int], Measurement] = unread, into: NDArray[np.float64] | None = None
) -> RunTable:
    """``into``: memory for the columns, where it is not to be their own."""
    import numpy as np

    codes: dict[str, NDArray[np.int32]] = {}
    vocabulary: dict[str, list[str]] = {}
    words = list(zip(*(row.words for row in rows), strict=True)) or [()] * len(WORDS)
    for name, column in zip(WORDS, words, strict=True):
        vocabulary[name] = list(dict.fromkeys(column))
        known = {word: code for code, word in enumerate(vocabulary[name])}
        codes[name] = np.fromiter(map(known.__getitem__, column), np.int32, len(column))
    matrix = np.frombuffer(b"".join([row.numbers for row in rows])).reshape(len(rows), len(NUMBERS))
    columns = np.empty(matrix.shape[::-1]) if into is None else into[:, : len(rows)]
    columns[:] = matrix.T
    numbers = {name: column for name, column in zip(NUMBERS, columns, strict=True) if not np.isnan(column).all()}
    return RunTable(
        run_ids=np.array([row.run_id.encode() for row in rows], np.bytes_),
        started_at=np.array([row.started_at.encode() for row in rows], np.bytes_),
        numbers=numbers,
        codes=codes,
        vocabulary=vocabulary,
        read=read,
    )


def joined(tables: Sequence[RunTable]) -> RunTable:
    """One table of several, their rows in this order."""
    import numpy as np

    tables = [table for table in tables if len(table)] or tables[:1]
    if len(tables) == 1:
        return tables[0]
    codes: dict[str, NDArray[np.int32]] = {}
    vocabulary: dict[str, list[str]] = {}
    for name in WORDS:
        known: dict[str, int] = {}
        parts: list[NDArray[np.int32]] = [np.zeros(0, np.int32)]
        for table in tables:
            anew = np.array([known.setdefault(word, len(known)) for word in table.vocabulary[name]], np.int32)
            parts.append(anew[table.codes[name]] if len(table) else np.zeros(0, np.int32))
        codes[name], vocabulary[name] = np.concatenate(parts), list(known)
    names = sorted({name for table in tables for name in table.numbers})
    return RunTable(
        run_ids=np.concatenate([np.zeros(0, "S1"), *(t.run_ids for t in tables)]),
        started_at=np.concatenate([np.zeros(0, "S1"), *(t.started_at for t in tables)]),
        numbers={name: np.concatenate([np.zeros(0), *(t.column(name) for t in tables)]) for name in names},
        codes=codes,
        vocabulary=vocabulary,
    )
