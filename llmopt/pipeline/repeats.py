"""How far repeats of one case are apart on this machine, by what is stored: a race knows its noise before it repeats anything."""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from llmopt.core.domain import Measurement
from llmopt.core.errors import StoreError
from llmopt.core.machine import this_machine
from llmopt.core.metrics import METRICS
from llmopt.core.run_index import read_store
from llmopt.core.run_table import RunTable
from llmopt.estimate.knowledge import USUAL
from llmopt.pipeline.visiting import DISTURBANCES
from llmopt.recommend.beliefs import USUAL_NOISE, Noise, fit
from llmopt.recommend.points import column_of

MOST_READ = 400  # records of a folder, the newest: a moment's work
PAUSE = timedelta(hours=6)  # after a longer one the machine may have changed
ENOUGH = 4  # degrees of freedom: of an engine with fewer nothing is known
MOST_FREEDOM = 50.0  # other configurations are not quite alike, however many of them were repeated
Repeated = tuple[str, ...]  # a case with the version of its engine, the revision of the harness and the commit


@dataclass(frozen=True, kw_only=True)
class Start:
    """What one start of a server read, as a logarithm; ``round`` of a race, 0 outside of any."""

    case: Repeated
    at: datetime
    value: float
    round: int = 0


def machine_noise(
    own: Path, metric: str, statistic: str | None, backends: Collection[str], without: Collection[str] = ()
) -> Noise:
    """Of a metric from one start of a server to the next on this machine: that of the noisiest of these ``backends``.

    Engines differ in it by a factor of a hundred, so one of which nothing is known leaves the usual noise.  Told by runs from
    where llmopt usually writes and from the race's ``own`` folder, but for those of the cases ``without``: they are in the
    race.  What cannot be read tells nothing.
    """
    starts: dict[str, list[list[Start]]] = {backend: [] for backend in backends}
    seen, started = set[str](), set[str]()
    column, left_out = column_of(METRICS[metric], statistic), set(without)
    for name in (*USUAL, own):
        with contextlib.suppress(StoreError, OSError, RuntimeError):  # a loop of links is a RuntimeError
            if Path(name).is_dir():
                rows_of = repeated(table := read_store(Path(name)).table, column, left_out)
                for backend, found in starts_of(table, rows_of, column, seen, started).items():
                    if backend in starts:
                        starts[backend].append(found)
    told = [learnt([race for found in folders for race in races(found)]) for folders in starts.values()]
    if not told or any(noise.freedom < USUAL_NOISE.freedom + ENOUGH for noise in told):
        return USUAL_NOISE
    noisiest = max(told, key=lambda noise: noise.share)
    return Noise(share=noisiest.share, freedom=min(noisiest.freedom, MOST_FREEDOM))


def learnt(sessions: Sequence[Sequence[Start]]) -> Noise:
    """What repeats add to the usual noise. What shifts a whole round of a race is no noise: its race takes it off, too."""
    noise = USUAL_NOISE
    for session in sessions:
        values: dict[Repeated, dict[int, float]] = defaultdict(dict)
        for start in session:
            if start.round:
                values[start.case][start.round] = start.value
        noise = with_race(connected(values), noise)
        noise = with_groups(alone([start for start in session if not start.round]), noise)
    return noise


def with_race(values: Mapping[Repeated, Mapping[int, float]], before: Noise) -> Noise:
    if not values:
        return before
    place = {round: number for number, round in enumerate(sorted({r for own in values.values() for r in own}))}
    named = {"\n".join(case): {place[r]: v for r, v in own.items()} for case, own in values.items()}
    _, share, freedom = fit(named, len(place), before, doubted=False)
    return Noise(share=share, freedom=freedom)


def with_groups(groups: Sequence[Sequence[float]], before: Noise) -> Noise:
    freedom = before.freedom + sum(len(group) - 1 for group in groups)
    rest = math.fsum((v - math.fsum(group) / len(group)) ** 2 for group in groups for v in group)
    return Noise(share=math.sqrt((before.freedom * before.share**2 + rest) / freedom), freedom=freedom)


def races(starts: Sequence[Start]) -> Iterator[list[Start]]:
    """In the order of time, parted by long pauses and where the rounds begin anew: a record does not name its race."""
    race: list[Start] = []
    for start in sorted(starts, key=lambda start: start.at):
        last = next((one.round for one in reversed(race) if one.round), 0)
        if race and (start.at - race[-1].at > PAUSE or 0 < start.round < last):
            yield race
            race = []
        race.append(start)
    yield race


def connected(values: Mapping[Repeated, Mapping[int, float]]) -> dict[Repeated, dict[int, float]]:
    """Without rounds of one case and cases of one round, which have an effect of their own each and tell nothing."""
    left = {case: dict(own) for case, own in values.items()}
    while True:
        cases: dict[int, int] = defaultdict(int)
        for own in left.values():
            for round in own:
                cases[round] += 1
        kept = {case: {r: v for r, v in own.items() if cases[r] > 1} for case, own in left.items()}
        kept = {case: own for case, own in kept.items() if len(own) > 1}
        if kept == left:
            return kept
        left = kept


def alone(starts: Sequence[Start]) -> list[list[float]]:
    """Outside of races: the values of each case."""
    groups: dict[Repeated, list[float]] = defaultdict(list)
    for start in starts:
        groups[start.case].append(start.value)
    return list(groups.values())


def starts_of(
    table: RunTable, cases: Sequence[Sequence[int]], column: str, seen: set[str], started: set[str]
) -> dict[str, list[Start]]:
    """Of each engine. A start tells once, by that of its cases that was measured most often.

    ``seen`` and ``started``: runs and starts of other folders, and of this one afterwards.
    """
    found: dict[str, list[Start]] = defaultdict(list)
    for rows in sorted(cases, key=len, reverse=True):
        sessions: dict[str, list[tuple[Measurement, float]]] = defaultdict(list)
        for row in rows:
            with contextlib.suppress(StoreError, OSError):
                run = table.record(row)
                if run.session and not run.gate and run.run_id not in seen:  # the sides of a gate may be two builds
                    seen.add(run.run_id)
                    sessions[run.session].append((run, math.log(table.column(column)[row])))
        for session, runs in sessions.items():
            if session not in started:
                started.add(session)
                found[runs[0][0].serve["backend"]].append(start_of(runs))
    return found


def start_of(runs: Sequence[tuple[Measurement, float]]) -> Start:
    run, round = runs[0][0], runs[0][0].race.get("round")
    return Start(
        case=(run.case_key, str(run.backend.get("version")), str(run.measuring_revision), str(run.commit)),
        at=datetime.fromisoformat(run.started_at).replace(tzinfo=None),
        value=math.fsum(value for _, value in runs) / len(runs),
        round=round if isinstance(round, int) else 0,
    )


def repeated(table: RunTable, column: str, without: set[str]) -> list[list[int]]:
    """Rows of this machine that tell, of each case that has several; the newest of all where there are many."""
    values, fingerprint = table.column(column), this_machine().fingerprint
    useless = DISTURBANCES | {"ended_early"}
    groups: dict[str, list[int]] = defaultdict(list)
    for row in range(len(table)):
        if not values[row] > 0 or table.word("machine", row) != fingerprint:
            continue
        if table.word("status", row) == "invalid" or useless & set(table.word("doubts", row).split(",")):
            continue
        if (case := table.word("case", row)) not in without:
            groups[case].append(row)
    several = [rows for rows in groups.values() if len(rows) > 1]
    newest = set(sorted(row for rows in several for row in rows)[-MOST_READ:])
    return [[row for row in rows if row in newest] for rows in several]
