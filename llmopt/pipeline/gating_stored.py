"""Stored runs against stored runs, or against what is measured now: nothing was paired."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from llmopt.core.domain import Measurement, stable_hash, workload_identity
from llmopt.core.errors import Inconclusive, ServerError, StoreError, UsageError
from llmopt.gate.blocks import Reading
from llmopt.gate.design import FEWEST
from llmopt.gate.differences import CASES, differences, require_allowed
from llmopt.gate.gaps import knowing
from llmopt.gate.judge import judge_stored, without_pass
from llmopt.gate.noise import noise_between_sessions
from llmopt.gate.thresholds import Threshold
from llmopt.gate.unpaired import SessionNoise, has_own_noise
from llmopt.pipeline.experiment import DoneRun, asked_wrongly, counts_beside, lost_reading, reading_of, what_failed
from llmopt.pipeline.gate_question import Question, Verdict
from llmopt.pipeline.measuring import RunOptions, measure_and_save
from llmopt.pipeline.sides import Contestant, Stored, Ways

RUNS_OF_A_SESSION = 2
FEWEST_SESSIONS = 2
LOST_SESSIONS = 2


def stored_gate(
    base: Sequence[Contestant] | Stored, candidate: Sequence[Contestant] | Stored, ways: Ways, question: Question
) -> list[Verdict]:
    """Unpaired: at least one side was measured before. The other, where it can be measured, is measured now."""
    refuse_idle(question, both_stored=isinstance(base, Stored) and isinstance(candidate, Stored))
    for side, other in ((base, candidate), (candidate, base)):
        if isinstance(side, Stored):
            refuse_duplicates(side)
            if not isinstance(other, Stored) and "workload" not in question.allow:
                require_measured_alike(side, other)
    sides = [
        side if isinstance(side, Stored) else measured_now(side, ways, question, keep_lost=side is candidate)
        for side in (base, candidate)
    ]
    refuse_shared(*sides)
    pairs = cases_in_common(sides[0], sides[1])
    verdicts = [judge_pair(one, other, ways, question.shared_by(len(pairs))) for one, other in pairs]
    cases = [by_case(side) for side in sides]
    if len(pairs) == max(map(len, cases)):
        return verdicts
    labels = [{key: f"{side.words} [{key[:8]}]" for key, side in own.items()} for own in cases]
    only = [[own[key] for key in own if key not in other] for own, other in (labels, labels[::-1])]
    return with_partners(verdicts, only[0], only[1], question)


def with_partners(
    verdicts: list[Verdict], base: Sequence[str], candidate: Sequence[str], question: Question
) -> list[Verdict]:
    """A case that only one side has is named, and one that only the base has lets nothing pass: it may be what broke."""
    lost, new = [label for label in base if label not in candidate], [label for label in candidate if label not in base]
    if not lost and not new:
        return verdicts
    first = verdicts[0].judgement
    notes = [f"only the base has {label}" for label in lost] + [f"only the candidate has {label}" for label in new]
    first = replace(first, notes=(*first.notes, *notes))
    if CASES not in question.allow:
        first = without_pass(first, tuple(f"the candidate has no {label}" for label in lost))
    return [replace(verdicts[0], judgement=first), *verdicts[1:]]


def require_measured_alike(side: Stored, others: Sequence[Contestant]) -> None:
    """Before anything is measured. Raises UsageError where no stored run had the workload that the other side would get."""
    had = [workload_identity(json.loads(json.dumps(run.workload, default=str))) for run in side.runs]
    for other in others:
        wanted = workload_identity(json.loads(json.dumps(asdict(other.workload), default=str)))
        if had and wanted not in had:
            names = [name for name in wanted if wanted[name] != had[0].get(name)]
            raise UsageError(
                f"{side.label} was measured with another workload than {other.label} would be: "
                + "; ".join(f"{name} {had[0].get(name)} against {wanted[name]}" for name in names[:3]),
                hint="--requests, --input-tokens … as they were then; or --allow workload if you know that they are alike",
            )


def measured_now(side: Sequence[Contestant], ways: Ways, question: Question, *, keep_lost: bool) -> Stored:
    """Sessions of two runs each, ``--rounds`` of them or as many as the budget holds, for the side that can be measured.

    ``keep_lost``: a server that answers, and only with errors, is a finding; two such sessions end it.  Raises Inconclusive
    for any other that fails; its runs until then are kept as all runs are.
    """
    runs: list[Measurement] = []
    lost: dict[str, tuple[Reading, ...]] = {}
    for contestant in side:
        started, number, gone = time.monotonic(), 0, lost.setdefault(contestant.case_key, ())
        while len(gone) < LOST_SESSIONS and more_sessions(number, time.monotonic() - started, question):
            try:
                with contestant.opened(ways.report) as subject:
                    for place in range(RUNS_OF_A_SESSION):
                        options = RunOptions(results=ways.results, workers=question.workers)
                        warm = place > 0 or (number > 0 and not contestant.restarts)
                        word = f"{contestant.label}, session {number + 1}"
                        runs.append(
                            measure_and_save(subject, contestant.workload, options, ways.report, warm=warm, word=word)
                        )
            except ServerError as error:
                failed, answers = what_failed(error)
                wrongly = asked_wrongly(failed) and not contestant.restarts
                if keep_lost and answers and not wrongly:
                    ways.report.say(f"{contestant.label}, session {number + 1}: {error.message}")
                    one = DoneRun(side="candidate", session=f"lost-{number}", problem=error.message, errors=failed)
                    gone = lost[contestant.case_key] = (*gone, lost_reading(one))
                    number += 1
                    continue
                if wrongly and not runs:
                    raise  # a wrong name or no key: nothing was measured
                raise Inconclusive(
                    f"{contestant.label} failed in session {number + 1}: {error.message}",
                    hint=f"{len(runs)} run(s) are kept in {ways.results}; mend it, and the same command measures again",
                ) from error
            number += 1
    return Stored(label=side[0].label, runs=tuple(runs), counts={}, lost={k: v for k, v in lost.items() if v})


def more_sessions(done: int, seconds: float, question: Question) -> bool:
    if question.budget_s is None:
        return done < (question.rounds or FEWEST)
    return done < FEWEST_SESSIONS or seconds * (done + 1) / done < question.budget_s


def refuse_idle(question: Question, *, both_stored: bool) -> None:
    """Raise UsageError for options that would change nothing."""
    idle = {"--seed": question.seed}  # of the order of blocks, and here is none
    if both_stored:
        idle |= {"--rounds": question.rounds, "--budget": question.budget_s}  # type: ignore[dict-item]
    if named := [flag for flag, value in idle.items() if value is not None]:
        sides = "both sides are stored, nothing is measured" if both_stored else "one side is stored, no order is drawn"
        raise UsageError(
            f"{sides}: {' and '.join(named)} would change nothing",
            hint="leave that out; or name recipes, artifacts or URLs to measure",
        )


def refuse_shared(base: Stored, candidate: Stored) -> None:
    """Raise UsageError for a run, or a copy of one, on both sides."""
    ours = {mark: run.run_id for run in base.runs for mark in marks(run)}
    for run in candidate.runs:
        for mark in marks(run):
            if mark in ours:
                copy = "" if run.run_id == ours[mark] else f", as {ours[mark]} and as {run.run_id}"
                raise UsageError(
                    f"both sides have the run {run.run_id}{copy}: that is no comparison",
                    hint="name two sets of runs that are not the same",
                )


def marks(run: Measurement) -> tuple[str, str]:
    """What no second run has: its id, and all its figures together."""
    return run.run_id, stable_hash(run.metrics)


def refuse_duplicates(side: Stored) -> None:
    """Raise UsageError for one run that stands for several: a copy says nothing new, and makes everything look sure."""
    seen: dict[str, str] = {}
    for run in side.runs:
        for mark in marks(run):
            if seen.get(mark) == run.run_id:
                raise UsageError(
                    f"{side.label}: the run {run.run_id} is there twice",
                    hint="name it once: as a file, or in its folder; a copy is no second run",
                )
            if mark in seen:
                raise UsageError(
                    f"{side.label}: the run {run.run_id} is a copy of {seen[mark]}",
                    hint="remove the copy: it is no second run",
                )
            seen[mark] = run.run_id


def cases_in_common(base: Stored, candidate: Stored) -> list[tuple[Stored, Stored]]:
    """One case a side, or those with the same key. Raises UsageError, StoreError where nothing is in common."""
    sides = [by_case(side) for side in (base, candidate)]
    for side, cases in zip((base, candidate), sides, strict=True):
        if not cases:
            raise StoreError(f"there is no run in {side.label}", hint="measure something first: llmopt bench")
    if all(len(cases) == 1 for cases in sides):
        return [(next(iter(sides[0].values())), next(iter(sides[1].values())))]
    keys = [key for key in sides[0] if key in sides[1]]
    if not keys:
        raise UsageError(
            f"{base.label} and {candidate.label} have no case in common",
            hint="a case is an artifact with its engine, options and workload: llmopt runs shows them",
        )
    return [(sides[0][key], sides[1][key]) for key in keys]


def by_case(side: Stored) -> dict[str, Stored]:
    cases: dict[str, list[Measurement]] = {}
    for run in side.runs:
        cases.setdefault(run.case_key, []).append(run)
    for key in side.lost:
        cases.setdefault(key, [])
    return {
        key: replace(side, runs=tuple(runs), lost={k: v for k, v in side.lost.items() if k == key})
        for key, runs in cases.items()
    }


def judge_pair(base: Stored, candidate: Stored, ways: Ways, question: Question) -> Verdict:
    found = differences(base.runs, candidate.runs, live=False)
    unmeant = require_allowed(found, question.allow)
    other_machine = any(d.name == "machine" for d in found)
    thresholds = without_a_clock(question.thresholds) if other_machine else question.thresholds

    def noise(threshold: Threshold) -> SessionNoise:
        return noise_between_sessions(ways.results, base.runs[0], threshold)

    ours, theirs = readings(base, ways.results), readings(candidate, ways.results)
    judgement = judge_stored(ours, theirs, thresholds, question.quality, noise=noise, confidence=question.confidence)
    judgement = without_pass(judgement, tuple(f"{name} differs" for name in unmeant))
    if dropped := [t.name for t in question.thresholds if t not in thresholds]:
        note = f"of two machines only what needs no clock is compared; left out: {', '.join(dropped)}"
        judgement = replace(judgement, notes=(*judgement.notes, note))
    found_noise = {noise(change.threshold).source for change in judgement.changes}
    known = next((source for source in ("assumed", "calibrated") if source in found_noise), "")
    sides = [[r for r in side if not r.invalid] for side in (ours, theirs)]
    judged = [change.threshold for change in judgement.changes]
    own = [all(has_own_noise(knowing(side, one)) for one in judged) for side in sides]
    sources = tuple("days" if known and alone else known for alone in own)
    return Verdict(
        base=base.words, candidate=candidate.words, judgement=judgement, differences=found, design=None, seconds=0.0,
        runs=(tuple(r.run_id for r in base.runs), tuple(r.run_id for r in candidate.runs)),
        confounded=sources,
        unmeant=unmeant,
    )  # fmt: skip


def without_a_clock(thresholds: Sequence[Threshold]) -> tuple[Threshold, ...]:
    """Those that mean the same on another machine. Raises UsageError for one that somebody named and that does not."""
    if named := [t.name for t in thresholds if t.needs_a_clock and not t.default]:
        raise UsageError(
            f"the sides are of two machines: only what needs no clock can be compared, and {', '.join(named)} needs one",
            hint="--metric peak_rss_bytes:5%, --quality kl:0.01; or measure both here",
        )
    return tuple(t for t in thresholds if not t.needs_a_clock)


def readings(side: Stored, results: Path) -> list[Reading]:
    """Of stored runs; a baseline brings its counts with it."""
    there = [
        reading_of(run, side.counts.get(run.run_id) or counts_beside(run, side.folder or results)) for run in side.runs
    ]
    return [*there, *(reading for lost in side.lost.values() for reading in lost)]
