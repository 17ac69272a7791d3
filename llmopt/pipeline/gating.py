"""``llmopt gate``: measure the two sides, or take what is stored, and judge."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llmopt.core.domain import Measurement, stable_hash, workload_identity
from llmopt.core.errors import Inconclusive, StoreError, UsageError
from llmopt.gate.blocks import Block, Reading
from llmopt.gate.design import DEFAULT_BLOCKS, FEWEST, Design, Side, make_design
from llmopt.gate.differences import Difference, differences, require_allowed
from llmopt.gate.judge import Judgement, judge, judge_stored, known, without_pass
from llmopt.gate.noise import noise_between_sessions
from llmopt.gate.thresholds import Threshold
from llmopt.gate.unpaired import SessionNoise
from llmopt.pipeline.experiment import (
    Experiment,
    State,
    counts_beside,
    gate_key,
    open_state,
    reading_of,
    save_state,
    stored_runs,
)
from llmopt.pipeline.measuring import RunOptions, measure_and_save
from llmopt.pipeline.reporter import Within
from llmopt.pipeline.sides import Contestant, Stored, Ways, paired, side_of

MOST_BLOCKS = 200
LOST_IN_A_ROW = 2
SIDES: tuple[Side, Side] = ("base", "candidate")


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is gated and how hard: the options of ``llmopt gate`` that are not about measuring."""

    thresholds: tuple[Threshold, ...]
    quality: tuple[Threshold, ...]
    rounds: int | None = None
    budget_s: float | None = None
    confidence: float = 0.99
    allow: tuple[str, ...] = ()
    seed: int | None = None
    workers: int = 1

    @property
    def blocks(self) -> int:
        return self.rounds or DEFAULT_BLOCKS

    @property
    def asked(self) -> list[Any]:
        """What makes it another gate: one with other thresholds or another end does not go on with these blocks."""
        bounds = [[t.name, t.tolerate, t.block] for t in (*self.thresholds, *self.quality)]
        return [bounds, self.rounds, self.budget_s, self.confidence]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One pair of cases, judged. ``design`` is ``None`` for stored runs, of which none was planned here.

    ``confounded``: where the noise between sessions is from, of stored runs; ``unmeant``: differences that nobody allowed.
    """

    base: str
    candidate: str
    judgement: Judgement
    differences: tuple[Difference, ...]
    design: Design | None
    seconds: float
    runs: tuple[tuple[str, ...], tuple[str, ...]]
    confounded: str = ""
    unmeant: tuple[str, ...] = ()


def gate(base: str, candidate: str, ways: Ways, question: Question) -> list[Verdict]:
    """One verdict for each pair of cases that the two sides have in common.

    Raises UsageError for sides that cannot be compared, Interrupted with what is kept.
    """
    one, other = side_of(base, ways), side_of(candidate, ways)
    if isinstance(one, Stored) or isinstance(other, Stored):
        return stored_gate(one, other, ways, question)
    return [experiment(*pair, ways, question) for pair in paired(one, other)]


# --- measured now, side by side -----------------------------------------------------------------------------------


def experiment(base: Contestant, candidate: Contestant, ways: Ways, question: Question) -> Verdict:
    """Measure until a look decides, or all blocks are there."""
    require_one_workload(base, candidate, question.allow)
    state = open_state(
        ways.results,
        gate_key(base, candidate, question.asked),
        question.seed,
        ways.report.say,
        lasting=base.restarts and candidate.restarts,
    )
    work = Experiment(
        base=base, candidate=candidate, results=ways.results, report=ways.report, state=state, workers=question.workers
    )
    with ways.report.task(f"{base.label} against {candidate.label}, blocks", question.blocks) as shown:
        blocks, design, found = until_decided(work, question, Within(ways.report, shown, question.blocks))
    state.finished = True
    save_state(ways.results, state)
    return Verdict(
        base=base.label,
        candidate=candidate.label,
        judgement=found,
        differences=differences(*(stored_runs(ways.results, blocks, side) for side in SIDES), live=True),
        design=design,
        seconds=sum(state.seconds),
        runs=(run_ids(b.base for b in blocks), run_ids(b.candidate for b in blocks)),
    )


def until_decided(work: Experiment, question: Question, report: Within) -> tuple[list[Block], Design, Judgement]:
    """Block after block until a look decides, the planned end comes, or one side is lost for good."""
    blocks, work.report = work.taken_up(), report
    while True:
        design = planned(question, work.state)
        report.done, report.total = len(blocks), design.blocks
        ended = len(blocks) >= design.blocks or lost_for_good(blocks)
        found = judge(blocks, design, question.thresholds, question.quality, ended=ended) if blocks else None
        if found is not None and found.decided:
            return blocks, design, found
        if len(blocks) == 1 and blocks[0].whole:  # what the first block does not know no other will
            known([blocks[0].readings], question.thresholds, "blocks")
        blocks.append(work.next_block(design))


def planned(question: Question, state: State) -> Design:
    """So many blocks as were asked for, or as fit into the budget by the time that the first one took.

    Its time is no figure that is judged, so nothing is peeked at.
    """
    blocks = question.blocks
    if question.budget_s is not None and state.seconds:
        blocks = min(MOST_BLOCKS, int(question.budget_s / state.seconds[0]))
        if blocks < 2:
            raise Inconclusive(
                f"a block takes {state.seconds[0]:.0f} s, and the budget of {question.budget_s:.0f} s holds only one",
                hint=f"--budget {FEWEST * state.seconds[0] / 60 + 1:.0f}min for {FEWEST} blocks; or fewer --requests",
            )
    return make_design(blocks, question.confidence, state.seed)


def lost_for_good(blocks: Sequence[Block]) -> bool:
    """Whether one side came to nothing twice in a row: further blocks would only repeat it."""
    last = blocks[-LOST_IN_A_ROW:]
    sides = ([b.base for b in last], [b.candidate for b in last])
    return len(last) == LOST_IN_A_ROW and any(
        all(not r.run_id for r in group) for side in sides for group in [sum(side, ())]
    )


def require_one_workload(base: Contestant, candidate: Contestant, allow: Sequence[str]) -> None:
    one, other = (workload_identity(asdict(c.workload)) for c in (base, candidate))
    names = [name for name in one if one[name] != other.get(name)]
    if names and "workload" not in allow:
        raise UsageError(
            "the two sides have another workload: "
            + "; ".join(f"{name} {one[name]} against {other.get(name)}" for name in names[:3]),
            hint="give both recipes the same workload; or --allow workload if that is what you test",
        )


def run_ids(groups: Iterable[Sequence[Reading]]) -> tuple[str, ...]:
    return tuple(r.run_id for group in groups for r in group if r.run_id)


# --- stored -------------------------------------------------------------------------------------------------------


def stored_gate(
    base: Sequence[Contestant] | Stored, candidate: Sequence[Contestant] | Stored, ways: Ways, question: Question
) -> list[Verdict]:
    """Unpaired: at least one side was measured before. The other, where it can be measured, is measured now."""
    for side, other in ((base, candidate), (candidate, base)):
        if isinstance(side, Stored):
            refuse_duplicates(side)
            if not isinstance(other, Stored) and "workload" not in question.allow:
                require_measured_alike(side, other)
    sides = [side if isinstance(side, Stored) else measured_now(side, ways, question) for side in (base, candidate)]
    if shared := {r.run_id for r in sides[0].runs} & {r.run_id for r in sides[1].runs}:
        raise UsageError(
            f"both sides have the run {min(shared)}: that is no comparison",
            hint="name two sets of runs that are not the same",
        )
    return [judge_pair(one, other, ways, question) for one, other in cases_in_common(sides[0], sides[1])]


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


def measured_now(side: Sequence[Contestant], ways: Ways, question: Question) -> Stored:
    """A few sessions of two runs each, for the side of a stored comparison that can be measured."""
    runs: list[Measurement] = []
    for contestant in side:
        for number in range(question.rounds or FEWEST):
            with contestant.opened(ways.report) as subject:
                for place in range(2):
                    options = RunOptions(results=ways.results, workers=question.workers)
                    warm = place > 0 or (number > 0 and not contestant.restarts)
                    word = f"session {number + 1} of {question.rounds or FEWEST}"
                    runs.append(
                        measure_and_save(subject, contestant.workload, options, ways.report, warm=warm, word=word)
                    )
    return Stored(label=side[0].label, runs=tuple(runs), counts={})


def refuse_duplicates(side: Stored) -> None:
    """Raise UsageError for one run that stands for several: a copy says nothing new, and makes everything look sure."""
    seen: dict[str, str] = {}
    for run in side.runs:
        for mark in (run.run_id, stable_hash(run.metrics)):
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
    return {key: replace(side, runs=tuple(runs)) for key, runs in cases.items()}


def judge_pair(base: Stored, candidate: Stored, ways: Ways, question: Question) -> Verdict:
    found = differences(base.runs, candidate.runs, live=False)
    unmeant = require_allowed(found, question.allow)
    other_machine = any(d.name == "machine" for d in found)
    thresholds = without_a_clock(question.thresholds) if other_machine else question.thresholds

    def noise(threshold: Threshold) -> SessionNoise:
        return noise_between_sessions(ways.results, base.runs[0], threshold)

    judgement = judge_stored(
        readings(base, ways.results), readings(candidate, ways.results), thresholds, question.quality,
        noise=noise, confidence=question.confidence,
    )  # fmt: skip
    judgement = without_pass(judgement, tuple(f"{name} differs" for name in unmeant))
    if dropped := [t.name for t in question.thresholds if t not in thresholds]:
        note = f"of two machines only what needs no clock is compared; left out: {', '.join(dropped)}"
        judgement = replace(judgement, notes=(*judgement.notes, note))
    sources = {noise(change.threshold).source for change in judgement.changes}
    return Verdict(
        base=base.words, candidate=candidate.words, judgement=judgement, differences=found, design=None, seconds=0.0,
        runs=(tuple(r.run_id for r in base.runs), tuple(r.run_id for r in candidate.runs)),
        confounded=next((source for source in ("assumed", "calibrated") if source in sources), ""),
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
    return [
        reading_of(run, side.counts.get(run.run_id) or counts_beside(run, side.folder or results)) for run in side.runs
    ]
