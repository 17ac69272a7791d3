"""``llmopt tune MODEL``: the whole job from one line.

The space is built and what cannot be is dropped with its reason; what is missing is quantized and proven; quality screens
before speed is measured; the survivors race in rounds (``recommend/racing.py``), each visit a load curve
(``visiting.py``).  Every run is saved as it ends, so the same command goes on where it was stopped; what crashes or runs
out of memory is a result like others, kept in ``tune.json``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

from llmopt import serve
from llmopt.core.domain import Measurement, Workload
from llmopt.core.errors import Inconclusive, Interrupted, LlmoptError
from llmopt.core.machine import this_machine
from llmopt.core.metrics import MEASURING_REVISION
from llmopt.core.run_index import load_runs
from llmopt.core.store import with_quality
from llmopt.pipeline.budget import Budget
from llmopt.pipeline.contestants import Field, Job, contestants_of, no_room, space_of
from llmopt.pipeline.expecting import priors
from llmopt.pipeline.measuring import RunOptions, engine_version
from llmopt.pipeline.plans import rank_runs
from llmopt.pipeline.remembered import STATE, Failure, State, read_state, write_state
from llmopt.pipeline.repeats import machine_noise
from llmopt.pipeline.reporter import Reporter
from llmopt.pipeline.searching import Searching
from llmopt.pipeline.visiting import (
    Contestant,
    Outcome,
    around,
    disturbed,
    enough,
    judged,
    objective,
    of_rounds,
    visit,
)
from llmopt.recommend.beliefs import USUAL_NOISE
from llmopt.recommend.constraints import on_memory
from llmopt.recommend.proposals import require_optuna
from llmopt.recommend.racing import Race, Standing
from llmopt.recommend.space import Configuration, Dropped
from llmopt.serve.options import command_words, require_known

EXHAUSTIVE_ROUNDS = 3
# Of the visits of an exhaustive search, after which those that are left are taken for equal: eight within the noise are never
# told apart (benchmarks/search). A small field may use more.
MOST_OF_EXHAUSTIVE, FEW_VISITS = 0.75, 12
MEASURING = 0.5  # of the budget, kept for measuring: once only so much is left nothing more is quantized
LAST_ROUND = 2  # visits that the first round leaves time for: the leader and its nearest once more
MOST_ROUNDS = 10_000


class Watcher(Reporter, Protocol):
    """A reporter that also shows how the race stands."""

    def stands(self, document: dict[str, Any]) -> None: ...


def tune(job: Job, folder: Path, report: Watcher) -> dict[str, Any]:
    """Everything, from the space to the ranking. Raises Interrupted, and UsageError for what could never run."""
    budget = Budget(seconds=job.budget_s)
    if job.ranges:
        require_optuna()  # before hours of making
    video = bool(this_machine().gpus)
    job = replace(job, goal=on_memory(job.goal, "peak_vram_bytes" if video else "peak_rss_bytes"))
    found = contestants_of(job, folder, report, lambda: budget.left > job.budget_s * MEASURING)
    if not found.contestants:
        raise nothing_left(found.dropped)
    if budget.left <= 0:
        raise too_short(job)
    racing = Racing(job, found, folder, report, budget)
    return document_of(racing, found, racing.run())


def tune_document(job: Job) -> dict[str, Any]:
    """What would be made and measured, and what not, with the reasons."""
    if job.ranges:
        require_optuna()
    space = space_of(job)
    large = {c.label: reason for c in space.configurations if (reason := unknown_to_it(c) or no_room(job, c))}
    dropped = [*space.dropped, *(Dropped(label=label, reason=reason) for label, reason in large.items())]
    return {
        "kind": "tune",
        "model": str(job.model),
        "levels": list(job.levels),
        "workload": asdict(job.workload),
        "budget_s": job.budget_s,
        "searched": {name: asdict(found) for name, found in job.ranges.items()},
        "configurations": [
            {"name": c.label, "quantization": c.quantization, "options": " ".join(command_words(c.options))}
            for c in space.configurations
            if c.label not in large
        ],
        "not_measured": [asdict(reason) for reason in dropped],
    }


def unknown_to_it(configuration: Configuration) -> str | None:
    """Why the engine would refuse these options."""
    try:
        require_known(serve.backend(configuration.options.backend), configuration.options)
    except LlmoptError as error:
        return error.message
    return None


def too_short(job: Job) -> LlmoptError:
    return Inconclusive(
        f"the budget of {job.budget_s:g} s ended before anything could be measured",
        hint="a longer --budget: what was made is kept, and the same command goes on",
    )


def nothing_left(dropped: Sequence[Dropped]) -> LlmoptError:
    first = dropped[0] if dropped else Dropped(label="the space", reason="it is empty")
    others = f", and {len(dropped) - 1} more likewise" if len(dropped) > 1 else ""
    return Inconclusive(
        f"no configuration is left to measure: {first.label}: {first.reason}{others}",
        hint=first.hint or "llmopt tune … --dry-run lists every reason",
    )


class Racing:
    """Rounds of visits until the race is settled or the time is up."""

    def __init__(self, job: Job, field: Field, folder: Path, report: Watcher, budget: Budget) -> None:
        self.job, self.contestants, self.report, self.budget = job, field.contestants, report, budget
        self.results, self.state = folder / "results", folder / STATE
        self.metric, self.statistic, better = objective(job.goal, video=bool(this_machine().gpus))
        traits = {label: contestant.traits for label, contestant in self.contestants.items()}
        expected = {} if job.exhaustive else priors(job.model, self.contestants, self.metric, better, self.results)
        self.race = Race(list(self.contestants), better=better, prior=expected, traits=traits, seed=job.seed)
        self.runs: list[Measurement] = []
        remembered = read_state(self.state, report.say)
        self.failures, self.proposed_before = remembered.failures, remembered.proposed
        self.outcomes: dict[str, Outcome] = {}
        self.visits = 0
        self.put_off: dict[str, tuple[int, Outcome]] = {}
        self.searching = Searching(job, field, folder, report, better, self.proposed_before) if job.ranges else None
        self.join(self.searching.taken_up if self.searching else ())
        if not job.exhaustive:
            own = [key for contestant in self.contestants.values() for key in keys_of(contestant)]
            backends = {contestant.case.serve.backend for contestant in self.contestants.values()}
            self.race.noise = machine_noise(self.results, self.metric, self.statistic, backends, own)

    def run(self) -> str:
        """Why it ended, in words."""
        unfinished = self.take_up()
        for round, label in unfinished:
            if self.affordable():
                self.visit(round, label)
        while self.budget.affords():
            arms = self.next_round()
            if not arms:
                break
            whole = self.round_of(arms)
            if not whole and self.race.round == 1 and not self.job.exhaustive and self.budget.affords(LAST_ROUND):
                self.round_of(self.race.last_round())
                break
        self.settle()
        return self.race.standing().settled or self.why_ended()

    def why_ended(self) -> str:
        if self.job.exhaustive and self.race.round == EXHAUSTIVE_ROUNDS and self.budget.affords():
            return "the rounds of an exhaustive search are over"
        if not self.job.exhaustive and self.at_length():
            return "those that are left are not told apart by as many visits as are worth it"
        return "the budget ended"

    def round_of(self, arms: Sequence[str]) -> bool:
        """Whether there was time for all of it."""
        if not arms:
            return True
        self.report.say(f"round {self.race.round}: {len(arms)} of {len(self.contestants)} configurations")
        for label in arms:
            if not self.affordable():
                return False
            self.visit(self.race.round, label)
        self.show()
        return True

    def next_round(self) -> list[str]:
        if self.searching and self.budget.affords():
            self.join(self.searching.more())
            self.save()
        if self.job.exhaustive:
            return self.race.whole_round() if self.race.round < EXHAUSTIVE_ROUNDS else []
        return [] if self.at_length() else self.race.next_round(self.budget.runs)

    def at_length(self) -> bool:
        """Whether as much was measured as is worth it where nothing settles."""
        visits = sum(map(len, self.race.values.values())) + len(self.race.failed)
        return visits >= max(FEW_VISITS, MOST_OF_EXHAUSTIVE * EXHAUSTIVE_ROUNDS * len(self.contestants))

    def join(self, labels: Iterable[str]) -> None:
        for label in labels:
            self.race.add(label, self.contestants[label].traits)

    def affordable(self) -> bool:
        """Whether there is time for one more; in the first round a last one is kept in reserve."""
        reserve = LAST_ROUND if self.race.round == 1 and not self.job.exhaustive else 0
        return self.budget.affords(1 + reserve)

    def take_up(self) -> list[tuple[int, str]]:
        """What an earlier start measured goes into the race; returns the visits that it did not finish."""
        unfinished = []
        for label, failure in self.failures.items():
            if label in self.contestants and failure.key == self.failure_key(label):
                self.race.record(1, label, failure=f"{failure.reason} (at an earlier start; {STATE} remembers it)")
        for (round, label), runs in sorted(self.stored().items()):
            self.runs += runs
            if len(runs) == runs[0].race.get("loads") or enough(runs, self.job.goal):
                self.judge(round, label, runs)
            elif label not in self.race.failed:
                unfinished.append((round, label))
        if self.job.exhaustive:
            unfinished += self.left_out_of_rounds(unfinished)
        if self.runs:
            self.report.say(f"taken up: {len(self.runs)} runs of {self.race.round} rounds")
        return unfinished

    def left_out_of_rounds(self, unfinished: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
        """Of the rounds that were begun, the visits that did not come to pass; what was put off did."""
        measured = {(run.race["round"], run.race["configuration"]) for run in self.runs}
        return [
            (round, label)
            for round in range(1, self.race.round + 1)
            for label in self.contestants
            if label not in self.race.failed
            and round not in self.race.values.get(label, {})
            and (round, label) not in (*unfinished, *measured)
        ]

    def stored(self) -> dict[tuple[int, str], list[Measurement]]:
        """This machine's runs of these configurations by round, by rising load."""
        found: dict[tuple[int, str], list[Measurement]] = {}
        if not self.results.exists():
            return found
        cases = {label: keys_of(contestant) for label, contestant in self.contestants.items()}
        versions = {name: engine_version(name) for name in {c.case.serve.backend for c in self.contestants.values()}}
        for run in load_runs(self.results, machine=this_machine(), say=self.report.say):
            label, round = run.race.get("configuration", ""), run.race.get("round")
            if not (isinstance(round, int) and 0 < round <= MOST_ROUNDS):
                continue  # not of a race, or somebody wrote into it
            current = run.measuring_revision == MEASURING_REVISION and run.case_key in cases.get(label, ())
            if current and not was_interrupted(run) and run.backend.get("version") == versions[run.serve["backend"]]:
                found.setdefault((round, label), []).append(run)
        for key, runs in found.items():
            runs.sort(key=lambda run: cases[key[1]].index(run.case_key))
        return found

    def visit(self, round: int, label: str) -> None:
        contestant, started = self.contestants[label], time.monotonic()
        workloads = self.workloads(label)
        options = RunOptions(
            results=self.results, race={"round": round, "configuration": label, "loads": len(workloads)}
        )
        there = [run for run in self.runs if run.race == options.race]
        self.show(doing=label)
        try:
            runs, whole = visit(
                contestant, workloads, self.job.goal, options, self.report,
                there=there, saved=self.runs.append, time_left_s=lambda: self.budget.left,
            )  # fmt: skip
        except Interrupted:
            raise
        except LlmoptError as error:
            if self.budget.left <= 0:  # it was not given the time that it needs: that says nothing about it
                return
            self.fail(round, label, error.message + (f"; {error.hint}" if error.hint else ""))
        else:
            if not whole:  # half a curve says nothing about its best load
                return
            self.judge(round, label, runs)
        self.visits += 1
        self.budget.visits.append(time.monotonic() - started)

    def workloads(self, label: str) -> tuple[Workload, ...]:
        """The whole curve the first time; then the load at which it was judged, and its neighbours."""
        own, before = self.contestants[label].workloads, self.outcomes.get(label)
        return own if before is None or self.job.exhaustive else around(own, self.place_of(label, before.key))

    def judge(self, round: int, label: str, runs: Sequence[Measurement]) -> None:
        """What all rounds say goes into the race; once it is put off, where one run does not tell."""
        every = [run for run in self.runs if run.race["configuration"] == label and run.race["round"] <= round]
        outcome = judged(every, self.job.goal)
        if outcome.value is not None:
            self.outcomes[label] = outcome
        decisive = [run for run in runs if run.case_key == outcome.key] or runs
        doubt = "the client or the machine was disturbed" if any(map(disturbed, decisive)) else ""
        doubt = doubt or ("a limit is missed by little" if outcome.near else "")
        if doubt and label not in self.put_off:
            self.put_off[label] = round, outcome
            self.report.say(f"{label}: {doubt}: measured again in the next round")
            return
        self.record(round, label, outcome)

    def record(self, round: int, label: str, outcome: Outcome) -> None:
        """Every round at the one load at which the configuration is judged now: values of unlike loads do not compare."""
        every = [run for run in self.runs if run.race["configuration"] == label]
        values = of_rounds(every, outcome.key, self.job.goal) if outcome.value is not None else {}
        if values:
            self.race.values.pop(label, None)
            for number, value in values.items():
                self.race.record(number, label, value)
        else:
            self.race.record(round, label, outcome.value, failure=outcome.failure)
        if self.searching:
            self.searching.tell(label, outcome.value)

    def settle(self) -> None:
        """Who was put off and not measured again has what it has."""
        for label, (round, outcome) in self.put_off.items():
            if label not in self.race.values and label not in self.race.failed:
                self.record(round, label, outcome)

    def place_of(self, label: str, key: str) -> int:
        """Which of the configuration's loads has the case of this key."""
        return keys_of(self.contestants[label]).index(key)

    def fail(self, round: int, label: str, reason: str) -> None:
        """A crash is not tried again by the next start, either."""
        self.race.record(round, label, failure=reason)
        if self.searching:
            self.searching.tell(label, None)
        self.failures[label] = Failure(round=round, key=self.failure_key(label), reason=reason)
        self.save()
        self.report.say(f"{label}: {reason}")

    def failure_key(self, label: str) -> str:
        """Another version of the engine may not crash."""
        case = self.contestants[label].case
        return f"{case.key} {engine_version(case.serve.backend)}"

    def save(self) -> None:
        proposed = self.searching.state() if self.searching else self.proposed_before
        write_state(self.state, State(failures=self.failures, proposed=proposed))

    def show(self, doing: str | None = None) -> None:
        self.report.stands(self.document(self.race.standing()) | {"doing": doing, "left_s": max(0.0, self.budget.left)})

    def document(self, standing: Standing) -> dict[str, Any]:
        return {
            "metric": self.metric + (f"_{self.statistic}" if self.statistic else ""),
            "round": self.race.round,
            "configurations": len(self.contestants),
            "visits": self.visits,
            "noise": standing.noise if any(len(v) > 1 for v in self.race.values.values()) else None,
            "noise_before": asdict(self.race.noise) | {"usual": self.race.noise == USUAL_NOISE},
            "tolerance": self.race.tolerance,
            "sure": self.race.sure(standing),
            "survivors": [asdict(e) | {"load": self.outcomes[e.arm].load} for e in standing.survivors],
            "unmeasured": list(standing.unmeasured),
            "dropped": [{"configuration": arm, "reason": reason} for arm, reason in standing.dropped.items()],
            "settled": standing.settled,
        }


def was_interrupted(run: Measurement) -> bool:
    """Ctrl-C keeps what had finished of a run; the next start measures it whole."""
    return any(doubt.code == "ended_early" and "(interrupted)" in doubt.message for doubt in run.verdict.reasons)


def keys_of(contestant: Contestant) -> list[str]:
    """The keys of its cases, by rising load."""
    return [replace(contestant.case, workload=w).key for w in contestant.workloads]


def document_of(racing: Racing, found: Field, ended: str) -> dict[str, Any]:
    """The ranking of what was measured, how the race went, and everything that was left out, with its reason."""
    quality = {key: c.quality for c in racing.contestants.values() for key in keys_of(c)}
    crashed = {label for label in racing.failures if label in racing.race.failed}
    runs = [with_quality(r, quality[r.case_key]) for r in racing.runs if r.race["configuration"] not in crashed]
    if not runs:
        standing = racing.race.standing()
        if standing.unmeasured or not standing.dropped:
            raise too_short(racing.job)
        raise nothing_left([Dropped(label=a, reason=r) for a, r in standing.dropped.items()])
    job, race = racing.job, racing.document(racing.race.standing())
    return {
        "kind": "tune",
        "model": str(job.model),
        "budget_s": job.budget_s,
        "spent_s": job.budget_s - racing.budget.left,
        "ended": ended,
        "reference": found.reference,
        "race": race,
        "not_measured": [asdict(dropped) for dropped in found.dropped],
        "ranking": rank_runs(runs, job.goal),
    }
