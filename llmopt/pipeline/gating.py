"""``llmopt gate``: measure the two sides, or take what is stored, and judge."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace

from llmopt.core.domain import workload_identity
from llmopt.core.errors import Inconclusive, Interrupted, LlmoptError, ServerError, StoreError, UsageError
from llmopt.gate.blocks import Block, Reading
from llmopt.gate.design import FEWEST, Design, Side, make_design
from llmopt.gate.differences import differences, require_allowed
from llmopt.gate.gaps import require_knowable
from llmopt.gate.judge import Judgement, judge
from llmopt.gate.quality import compare_quality
from llmopt.pipeline.experiment import Experiment, ServerGone, State, gate_key, open_state, save_state, stored_runs
from llmopt.pipeline.gate_question import Question, Verdict
from llmopt.pipeline.gating_stored import stored_gate, with_partners
from llmopt.pipeline.reporter import Within
from llmopt.pipeline.sides import Contestant, Stored, Ways, paired, side_of

MOST_BLOCKS = 200
LOST_IN_A_ROW = 2
SIDES: tuple[Side, Side] = ("base", "candidate")


def gate(base: str, candidate: str, ways: Ways, question: Question) -> list[Verdict]:
    """One verdict for each pair of cases that the two sides have in common.

    Raises UsageError for sides that cannot be compared, Interrupted with what is kept.
    """
    require_allowed((), question.allow)  # a name that is none is said before an hour is spent
    one, other = side_of(base, ways), side_of(candidate, ways)
    if isinstance(one, Stored) or isinstance(other, Stored):
        return stored_gate(one, other, ways, question)
    pairs = paired(one, other)
    verdicts = [experiment(*pair, ways, question.shared_by(len(pairs))) for pair in pairs]
    labels = [[c.label for c in side] for side in (one, other)] if len(pairs) < max(len(one), len(other)) else [[], []]
    return with_partners(verdicts, labels[0], labels[1], question)


def experiment(base: Contestant, candidate: Contestant, ways: Ways, question: Question) -> Verdict:
    """Measure until a look decides, or all blocks are there."""
    require_one_workload(base, candidate, question.allow)
    require_proofs(base, candidate, question)
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
        try:
            blocks, design, found = until_decided(work, question, Within(ways.report, shown, question.blocks))
        except (Interrupted, ServerGone, ServerError, StoreError):
            raise  # the same command goes on with the blocks that are kept
        except KeyboardInterrupt as error:  # between two blocks
            raise Interrupted(
                f"interrupted after block {len(state.blocks)}: what was measured is kept",
                hint="the same command goes on",
            ) from error
        except LlmoptError:
            finish(work)  # these blocks would only say the same again
            raise
    finish(work)
    return Verdict(
        base=base.label,
        candidate=candidate.label,
        judgement=found,
        differences=differences(*(stored_runs(ways.results, blocks, side) for side in SIDES), live=True),
        design=design,
        seconds=sum(state.seconds),
        runs=(run_ids(b.base for b in blocks), run_ids(b.candidate for b in blocks)),
        confounded=() if base.restarts and candidate.restarts else ("starts",),
    )


def finish(work: Experiment) -> None:
    work.state.finished = True
    if work.state.blocks:
        save_state(work.results, work.state)


def until_decided(work: Experiment, question: Question, report: Within) -> tuple[list[Block], Design, Judgement]:
    """Block after block until a look decides, the planned end comes, or one side is lost for good."""
    blocks, work.report = work.taken_up(), report
    notes = taken_up_note(work, len(blocks))
    looked = -1
    while True:
        design = planned(question, work.state)
        report.done, report.total = len(blocks), design.blocks
        ended = len(blocks) >= design.blocks or lost_for_good(blocks) or time_is_over(question, work.state)
        whole = sum(b.whole for b in blocks)
        found = None
        if ended or whole != looked:  # a block that does not count is no reason to look again
            found = judge(blocks, design, question.thresholds, question.quality, ended=ended) if blocks else None
            looked = whole
        if found is not None and found.decided:
            return blocks, design, replace(found, notes=(*found.notes, *notes))
        if len(blocks) == 1 and blocks[0].whole:  # what no other block will know either is said at once
            require_knowable(blocks[0].base, blocks[0].candidate, question.thresholds)
            compare_quality(blocks[0].base, blocks[0].candidate, question.quality, confidence=question.confidence)
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


def taken_up_note(work: Experiment, blocks: int) -> tuple[str, ...]:
    if not blocks:
        return ()
    return (f"the first {blocks} block(s) were measured by an earlier call, begun {work.state.started_at}",)


def time_is_over(question: Question, state: State) -> bool:
    """A budget ends a gate between two blocks, where later ones took longer than the first."""
    return question.budget_s is not None and sum(state.seconds) >= question.budget_s


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


def require_proofs(base: Contestant, candidate: Contestant, question: Question) -> None:
    """Before anything is measured. Raises UsageError for a quality that somebody named and one side was not proven in."""
    ours, theirs = (
        [Reading(run_id=c.label, metrics={}, quality=c.quality, model=c.model, unquantized=c.unquantized)]
        for c in (base, candidate)
    )
    compare_quality(ours, theirs, question.quality, confidence=question.confidence)


def run_ids(groups: Iterable[Sequence[Reading]]) -> tuple[str, ...]:
    return tuple(r.run_id for group in groups for r in group if r.run_id)
