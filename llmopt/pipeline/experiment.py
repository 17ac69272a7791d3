"""A gate's experiment carried out: block after block, every run saved, what is done taken up after a crash.

The state of a gate is one file, ``RESULTS/gates/KEY.json``: its design, and of each block which runs it had.  The runs
themselves are records like all others.  A block that was cut short is measured again as a whole: its runs belong
together because they were close in time.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec

from llmopt.core.commit import commit_here
from llmopt.core.domain import Measurement, stable_hash
from llmopt.core.errors import Inconclusive, Interrupted, NothingAnswered, ServerError, StoreError
from llmopt.core.files import write_atomic
from llmopt.core.machine import this_machine
from llmopt.core.metrics import MEASURING_REVISION
from llmopt.core.store import load_traces, machine_folder, read_run, record_file
from llmopt.gate.blocks import Block, Reading
from llmopt.gate.counts import Counts, counts_of
from llmopt.gate.design import Design, Side
from llmopt.gate.quality import unquantized
from llmopt.pipeline.measuring import RunOptions, measure_and_save, now
from llmopt.pipeline.reporter import Reporter
from llmopt.pipeline.sides import Contestant

STATE_SCHEMA = 1
JOBS = ("GITHUB_RUN_ID", "CI_PIPELINE_ID")
STALE_S = 6 * 3600
# What a client hears of a server that is not there.
SILENT = {"refused", "reset", "timeout", "none"}
# What it did itself with requests that nothing can be said of: in flight when it gave up, or never sent.
OWN_DOING = {"stopped", "dropped"}
# What it hears where it asked for a wrong name, without a key, or too often: that says nothing of the candidate.
ASKED_WRONGLY = {f"http_{status}" for status in (401, 403, 404, 405, 422, 429)}


class ServerGone(Inconclusive):
    """A server that we did not start stopped answering: neither a pass nor a regression."""


class DoneRun(msgspec.Struct, frozen=True):
    """One run of a block. Without ``run_id`` there is no record: ``problem`` says what came in its place."""

    side: Side
    session: str
    run_id: str = ""
    problem: str = ""
    crashed: bool = False
    errors: dict[str, int] = {}


class State(msgspec.Struct, kw_only=True):
    """What is known of a gate between two blocks."""

    key: str
    seed: int
    started_at: str
    blocks: list[list[DoneRun]] = []
    seconds: list[float] = []
    finished: bool = False
    schema: int = STATE_SCHEMA


def state_file(results: Path, key: str) -> Path:
    return results / "gates" / f"{key}.json"


def gate_key(base: Contestant, candidate: Contestant, asked: Any) -> str:
    """Of what is compared, how, and on which machine: the same command goes on where it was cut off."""
    here: list[str] = []
    if not (base.restarts and candidate.restarts):  # behind an address there may be another server in another job
        here = [commit_here(), *(os.environ.get(name, "") for name in JOBS)]
    how = [asked, this_machine().fingerprint, here, MEASURING_REVISION]
    return stable_hash([base.identity, candidate.identity, *how])[:16]


def open_state(results: Path, key: str, seed: int | None, say: Callable[[str], None], *, lasting: bool = True) -> State:
    """The unfinished state of this very gate, or a fresh one with a seed of its own.

    ``lasting``: what is compared is known by its content.  Behind an address there may be another server by now.
    """
    file = state_file(results, key)
    if not lasting and file.exists() and time.time() - file.stat().st_mtime > STALE_S:
        say(f"{file} is older than {STALE_S // 3600} hours, and who answers now may be another: the gate begins anew")
        file.unlink()
    if file.exists():
        try:
            state = msgspec.json.decode(file.read_bytes(), type=State)
        except (msgspec.DecodeError, OSError) as error:
            say(f"{file} cannot be read ({error}): the gate begins anew")
        else:
            if state.schema == STATE_SCHEMA and not state.finished and state.blocks and seed in (None, state.seed):
                say(f"going on after block {len(state.blocks)}, begun {state.started_at}")
                return state
    return State(key=key, seed=secrets.randbelow(1 << 31) if seed is None else seed, started_at=now())


def save_state(results: Path, state: State) -> None:
    write_atomic(state_file(results, state.key), msgspec.json.format(msgspec.json.encode(state), indent=1) + b"\n")


@dataclass(kw_only=True)
class Experiment:
    """The blocks of one pair of contestants; ``carry_out`` yields each as it is done."""

    base: Contestant
    candidate: Contestant
    results: Path
    report: Reporter
    state: State
    workers: int = 1
    seen: set[Side] = field(default_factory=set)

    def taken_up(self) -> list[Block]:
        """What an earlier call has measured. Raises StoreError where a record of it is gone."""
        return [self.block(number, runs) for number, runs in enumerate(self.state.blocks)]

    def next_block(self, design: Design) -> Block:
        """Measure the first block that is not there yet, and keep it. Raises Interrupted; what is whole by then is kept."""
        number, started = len(self.state.blocks), time.monotonic()
        try:
            runs = self.measure_block(number, design)
        except (Interrupted, KeyboardInterrupt) as error:  # also between two runs, and while a server starts
            raise Interrupted(
                f"interrupted in block {number + 1} of at most {design.blocks}; the {number} before are kept",
                hint="the same command goes on with this block",
            ) from error
        self.state.blocks.append(runs)
        self.state.seconds.append(time.monotonic() - started)
        save_state(self.results, self.state)
        return self.block(number, runs)

    def measure_block(self, number: int, design: Design) -> list[DoneRun]:
        order = design.orders[number]
        runs: list[DoneRun] = []
        for side, places in groupby(order):
            runs += self.measure_session(number, design.blocks, side, len(list(places)), len(runs))
        return runs

    def measure_session(self, number: int, blocks: int, side: Side, count: int, first: int) -> list[DoneRun]:
        """``count`` runs of one side, of one start of its server. A server that fails costs the block, not the gate.

        Raises ServerGone for a server that we did not start and that does not answer any more, and whatever a server of
        the base raises in the first block: there is nothing to compare with.
        """
        contestant = self.base if side == "base" else self.candidate
        runs: list[DoneRun] = []
        session = f"{self.state.key}-{number}-{first}"
        try:
            with contestant.opened(self.report) as subject:
                session = subject.session
                for place in range(count):
                    about = {"key": self.state.key, "block": number, "side": side, "place": first + place}
                    options = RunOptions(results=self.results, workers=self.workers, gate=about)
                    warm = place > 0 or (not contestant.restarts and side in self.seen)
                    word = f"block {number + 1} of at most {blocks}, {side}"
                    run = measure_and_save(subject, contestant.workload, options, self.report, warm=warm, word=word)
                    self.seen.add(side)
                    runs.append(DoneRun(side=side, session=session, run_id=run.run_id))
        except ServerError as error:
            failed, answers = what_failed(error)
            if number == 0 and (side == "base" or not answers or asked_wrongly(failed)) and not contestant.restarts:
                raise
            if not contestant.restarts and not answers:
                raise ServerGone(
                    f"the {side}'s server went away in block {number + 1}: {error.message}",
                    hint=f"the {number} block(s) before are kept: start it again, and the same command goes on",
                ) from error
            if number == 0 and side == "base":
                raise
            self.report.say(f"block {number + 1}, {side}: {error.message}")
            lost = DoneRun(
                side=side, session=session, problem=error.message, crashed=not answers,
                errors=failed if answers else {},
            )  # fmt: skip
            runs += [lost] * (count - len(runs))
        return runs

    def block(self, number: int, runs: Sequence[DoneRun]) -> Block:
        sides: dict[Side, list[Reading]] = {"base": [], "candidate": []}
        for run in runs:
            sides[run.side].append(lost_reading(run) if not run.run_id else stored_reading(self.results, run))
        return Block(number=number, base=tuple(sides["base"]), candidate=tuple(sides["candidate"]))


def what_failed(error: ServerError) -> tuple[dict[str, int], bool]:
    """The requests that failed by kind, and whether the server is there: it said no, or broke answers off and took others."""
    if not isinstance(error, NothingAnswered):
        return {}, False
    failed = {kind: count for kind, count in error.errors.items() if kind not in OWN_DOING}
    broke_off = error.begun and "refused" not in failed
    return failed, broke_off or bool(failed.keys() - SILENT)


def asked_wrongly(failed: Mapping[str, int]) -> bool:
    return bool(failed) and failed.keys() <= ASKED_WRONGLY


def lost_reading(run: DoneRun) -> Reading:
    """A run without a record: the server died, or answered every request with an error."""
    failed = sum(run.errors.values())
    counts = Counts(planned=failed, failed=failed, errors=run.errors, crashes=int(run.crashed))
    return Reading(run_id="", metrics={}, counts=counts, invalid=(run.problem,), session=run.session)


def stored_reading(results: Path, run: DoneRun) -> Reading:
    file = machine_folder(results, this_machine()) / f"{run.run_id}.json"
    found = read_run(file) if file.exists() else None
    if found is None:
        raise StoreError(
            f"the run {run.run_id} of this gate is gone from {file.parent}",
            hint=f"begin anew: remove {results / 'gates'}, or restore the file from git",
        )
    return reading_of(found, counts_beside(found, results))


def counts_beside(run: Measurement, results: Path) -> Counts:
    """Of the run's own timelines; where they are gone, what the record has of it."""
    file = record_file(results, run)
    if file.with_name(f"{run.run_id}.traces.json.gz").exists():
        return counts_of(load_traces(file))
    failed = int(run.metrics.get("requests_failed") or 0)
    good = int(run.metrics.get("requests_ok") or 0)
    told, asked = run.tokens.get("server"), int(run.tokens.get("requested") or 0)
    return Counts(
        planned=failed + good, failed=failed, dropped=int(run.metrics.get("dropped") or 0),
        errors=dict(run.metrics.get("errors") or {}), prompt_tokens=run.tokens.get("prompt"), output_tokens=told,
        requested_tokens=asked, short=0 if asked and told == asked else None,  # all in all as many as were asked for: none was cut
    )  # fmt: skip


def reading_of(run: Measurement, counts: Counts) -> Reading:
    """What a record says to the gate."""
    died = any(d.code == "server_restarted" for d in run.verdict.reasons)
    invalid = tuple(d.message for d in run.verdict.reasons if d.severity == "invalid")
    if run.verdict.status == "invalid" and not invalid:
        invalid = (f"the verdict of {run.run_id} is invalid",)
    return Reading(
        run_id=run.run_id,
        metrics=run.metrics,
        counts=replace(counts, crashes=max(counts.crashes, int(died))),
        quality=run.quality,
        invalid=invalid + missing(run, counts),
        session=run.session,
        started_at=run.started_at,
        model=run.artifact.get("base_key"),
        unquantized=unquantized(run.artifact.get("method"), run.serve),
    )


def missing(run: Measurement, counts: Counts) -> tuple[str, ...]:
    """Why a run of which requests are gone does not count: nobody knows how those went."""
    asked = run.workload.get("requests") if run.workload.get("turns", 1) == 1 else None
    if not asked or not 0 < counts.planned < asked:
        return ()
    return (f"{asked - counts.planned} of its {asked} requests are missing",)


def stored_runs(results: Path, blocks: Sequence[Block], side: Side | None = None) -> list[Measurement]:
    """The records behind blocks, of one side or of both."""
    folder, found = machine_folder(results, this_machine()), []
    for block in blocks:
        for reading in {"base": block.base, "candidate": block.candidate, None: block.readings}[side]:
            run = read_run(folder / f"{reading.run_id}.json") if reading.run_id else None
            if run is not None:
                found.append(run)
    return found
