"""The race of ``llmopt tune`` over visits that are made up: what a round says, and what it does not."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from llmopt import demo
from llmopt.core.artifacts import open_artifact
from llmopt.core.domain import ServeOptions, Workload
from llmopt.core.errors import ServerError
from llmopt.pipeline import tuning
from llmopt.pipeline.budget import Budget
from llmopt.pipeline.contestants import Field, Job
from llmopt.pipeline.plans import case_of
from llmopt.pipeline.tuning import Racing
from llmopt.pipeline.visiting import Contestant
from llmopt.recommend.constraints import make_goal
from llmopt.report.racing import RaceReporter
from unit.make import WORKLOAD, distribution, metrics, run

USERS = 4


class Visits:
    """Stands for ``visit``: of each configuration (throughput, ttft_s) by round, or what goes wrong."""

    def __init__(self, **figures):
        self.figures, self.asked = figures, []

    def __call__(self, contestant, workloads, goal, options, report, *, there, saved, time_left_s):
        label, round = contestant.label, options.race["round"]
        self.asked.append((round, label))
        found = self.figures[label]
        found = found[min(round, len(found)) - 1] if isinstance(found, list) else found
        if isinstance(found, Exception):
            raise found
        if found is None:
            return [], False
        throughput, ttft_s = found
        made = run(
            label, metrics=metrics(throughput) | {"ttft_s": distribution(ttft_s)}, race=options.race,
            workload=WORKLOAD | {"concurrency": USERS}, case_key=replace(contestant.case, workload=workloads[0]).key,
            run_id=f"{label}-{round}", started_at=f"2025-01-{round:02}",
        )  # fmt: skip
        saved(made)
        return [made], True


@pytest.fixture
def racing(tmp_path, monkeypatch):
    """Makes a race of these visits."""

    def make(*limits, exhaustive=True, **figures):
        visits = Visits(**figures)
        monkeypatch.setattr(tuning, "visit", visits)
        monkeypatch.setattr(tuning, "engine_version", lambda name: "1.0")
        workload = Workload(concurrency=USERS)
        job = Job(
            model=demo.MODEL,
            goal=make_goal(list(limits)),
            workload=workload,
            levels=(USERS,),
            budget_s=60,
            exhaustive=exhaustive,
        )
        artifact = open_artifact(demo.MODEL)
        contestants = {
            label: Contestant(
                label=label,
                case=case_of(artifact, ServeOptions(backend="scripted", max_num_seqs=n), workload),
                workloads=job.loads,
            )
            for n, label in enumerate(figures, 1)
        }
        found = Field(contestants=contestants)
        made = Racing(job, found, tmp_path, RaceReporter(quiet=True), Budget(seconds=60))
        made.visits_asked = visits.asked
        return made

    return make


def test_a_limit_that_is_missed_once_in_three_rounds_drops_nobody(racing):
    race = racing("ttft_p95<500ms", a=[(100, 0.45), (100, 0.505), (100, 0.46)], b=(60, 0.3))
    race.run()
    assert race.race.standing().leader == "a"


def test_nor_does_one_that_is_missed_by_little_at_first(racing):
    race = racing("ttft_p95<500ms", a=[(100, 0.505), (100, 0.45), (100, 0.46)], b=(60, 0.3))
    race.run()
    assert race.race.standing().leader == "a"
    assert len(race.race.values["a"]) == 3


def test_one_that_is_missed_by_far_does(racing):
    race = racing("ttft_p95<500ms", a=(100, 0.9), b=(60, 0.3))
    race.run()
    assert "ttft_p95<500ms: measured 900.0 ms" in race.race.failed["a"]
    assert race.visits_asked.count((2, "a")) == 0


def test_half_a_curve_is_no_result(racing):
    race = racing(a=None, b=(60, 0.3))
    race.run()
    assert "a" not in race.race.values
    assert "a" not in race.race.failed


def test_what_crashed_is_not_ranked(racing):
    race = racing(a=[(100, 0.1), ServerError("it died")], b=(60, 0.1))
    document = tuning.document_of(race, Field(), race.run())
    assert [row["configuration"] for row in document["race"]["dropped"]] == ["a"]
    assert [row["case"]["artifact"]["quantization"] for row in document["ranking"]["ranked"]] == ["b"]


def test_a_crash_of_an_earlier_start_is_remembered_for_that_version_of_the_engine(racing, tmp_path, monkeypatch):
    racing(a=ServerError("it died"), b=(60, 0.1)).run()
    again = racing(a=(100, 0.1), b=(60, 0.1))
    again.run()
    assert "at an earlier start" in again.race.failed["a"]
    assert json.loads((tmp_path / "tune.json").read_text())["failures"]["a"]["reason"] == "it died"
    newer = racing(a=(100, 0.1), b=(60, 0.1))
    monkeypatch.setattr(tuning, "engine_version", lambda name: "2.0")
    newer.run()
    assert newer.race.standing().leader == "a"


def test_an_exhaustive_search_makes_up_for_what_a_round_left_out(racing):
    race = racing(a=(100, 0.1), b=(60, 0.1))
    race.race.record(1, "a", 100.0)
    race.race.record(2, "a", 100.0)
    race.race.record(2, "b", 60.0)
    assert race.left_out_of_rounds([]) == [(1, "b")]
