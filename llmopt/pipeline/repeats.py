"""How far repeats of one case are apart on this machine, by what is stored: a race knows its noise before it repeats anything."""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from llmopt.core.errors import StoreError
from llmopt.core.machine import this_machine
from llmopt.core.metrics import METRICS
from llmopt.core.run_index import read_store
from llmopt.core.run_table import RunTable
from llmopt.estimate.knowledge import USUAL
from llmopt.pipeline.visiting import DISTURBANCES
from llmopt.recommend.beliefs import USUAL_NOISE, Noise, fit
from llmopt.recommend.points import column_of

MOST_READ = 400  # records, the newest: a moment's work
PAUSE = timedelta(hours=6)  # between runs of one case; after a longer one the machine may have changed
MOST_FREEDOM = 60.0  # other configurations are not quite alike, however many of them were repeated
Case = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Start:
    """What the runs of one start of a server read, as a logarithm; ``round`` of a race, 0 outside of any."""

    at: datetime
    value: float
    round: int = 0


def machine_noise(own: Path, metric: str, statistic: str | None, without: Collection[str] = ()) -> Noise:
    """Of a metric from one start of a server to the next, by runs of this machine; the usual one as far as they tell none.

    Runs from where llmopt usually writes and from the race's ``own`` folder, but for those of the cases ``without``: they
    are in the race. A folder that cannot be read tells nothing.
    """
    column = column_of(METRICS[metric], statistic)
    noise = USUAL_NOISE
    for folder in sorted({Path(name).resolve() for name in (*USUAL, own)}):
        if folder.is_dir():
            with contextlib.suppress(StoreError, OSError):
                noise = learnt(starts_of(read_store(folder).table, column, without), noise)
    return Noise(share=noise.share, freedom=min(noise.freedom, MOST_FREEDOM))


def learnt(starts: Mapping[Case, Sequence[Start]], before: Noise = USUAL_NOISE) -> Noise:
    """What is known after these repeats. What shifts a whole round of a race is no noise: its race takes it off, too."""
    lone = {case: [start for start in own if not start.round] for case, own in starts.items()}
    groups = [[s.value for s in sitting] for own in lone.values() for sitting in sittings(own)]
    freedom = sum(len(group) - 1 for group in groups)
    rest = math.fsum((v - math.fsum(group) / len(group)) ** 2 for group in groups for v in group)
    variance = (before.freedom * before.share**2 + rest) / (before.freedom + freedom)
    noise = Noise(share=math.sqrt(variance), freedom=before.freedom + freedom)
    rounds = sorted({round_of(start) for own in starts.values() for start in own if start.round})
    if not rounds:
        return noise
    place = {round: number for number, round in enumerate(rounds)}
    values = {
        "\n".join(case): {place[round_of(start)]: start.value for start in own if start.round}
        for case, own in starts.items()
        if any(start.round for start in own)
    }
    _, share, known = fit(values, len(rounds), noise)
    return Noise(share=share, freedom=known)


def round_of(start: Start) -> tuple[str, int]:
    """The first round of another day is another round."""
    return start.at.date().isoformat(), start.round


def sittings(starts: Sequence[Start]) -> Iterator[Sequence[Start]]:
    """Those that no long pause parts."""
    first = 0
    for place in range(1, len(starts) + 1):
        if place == len(starts) or starts[place].at - starts[place - 1].at > PAUSE:
            yield starts[first:place]
            first = place


def starts_of(table: RunTable, column: str, without: Collection[str]) -> dict[Case, list[Start]]:
    """Of each case with one version of its engine that was measured more than once on this machine, oldest first."""
    return {case: readings(table, rows, column) for case, rows in repeated(table, column, without).items()}


def repeated(table: RunTable, column: str, without: Collection[str]) -> dict[Case, list[int]]:
    """Rows that tell, oldest first; the newest of all where there are many."""
    values, fingerprint = table.column(column), this_machine().fingerprint
    groups: dict[Case, list[int]] = defaultdict(list)
    for row in range(len(table)):
        if not values[row] > 0 or table.word("machine", row) != fingerprint:
            continue
        if table.word("status", row) == "invalid" or DISTURBANCES & set(table.word("doubts", row).split(",")):
            continue
        if (case := table.word("case", row)) not in without:
            groups[case, table.word("version", row), table.word("revision", row)].append(row)
    several = {case: rows for case, rows in groups.items() if len(rows) > 1}
    newest = set(sorted(row for rows in several.values() for row in rows)[-MOST_READ:])
    return {case: [row for row in rows if row in newest] for case, rows in several.items()}


def readings(table: RunTable, rows: Sequence[int], column: str) -> list[Start]:
    """One start of a server is one reading, the mean of its runs; a run that does not tell its start is left out."""
    found: dict[str, list[tuple[datetime, float, int]]] = defaultdict(list)
    for row in rows:
        run = table.record(row)
        if run.session:
            at = datetime.fromisoformat(run.started_at).replace(tzinfo=None)
            round = run.race.get("round")
            found[run.session].append((at, math.log(table.column(column)[row]), round if isinstance(round, int) else 0))
    known = [
        Start(at=own[0][0], value=math.fsum(value for _, value, _ in own) / len(own), round=own[0][2])
        for own in found.values()
    ]
    return sorted(known, key=lambda start: start.at)
