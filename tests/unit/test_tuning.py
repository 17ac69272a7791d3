"""The race of ``llmopt tune`` over visits that are made up: what a round says, and what it does not."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from llmopt import demo
from llmopt.core.artifacts import open_artifact
from llmopt.core.domain import Doubt, ServeOptions, Verdict, Workload
from llmopt.core.errors import Inconclusive, ServerError
from llmopt.pipeline import tuning
from llmopt.pipeline.budget import Budget
from llmopt.pipeline.contestants import Field, Job, reference_of
from llmopt.pipeline.plans import case_of
from llmopt.pipeline.remembered import State, read_state
from llmopt.pipeline.tuning import Racing
from llmopt.pipeline.visiting import Contestant
from llmopt.quantize import quantization
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


def test_a_disturbed_run_that_was_measured_again_does_not_weigh(racing, monkeypatch):
    race = racing(a=(100, 0.1), b=[(20, 0.1), (100, 0.1), (100, 0.1)])
    made = tuning.visit

    def shared(contestant, workloads, goal, options, report, *, there, saved, time_left_s):
        noticed = []
        runs, whole = made(contestant, workloads, goal, options, report, there=there, saved=noticed.append,
                           time_left_s=time_left_s)  # fmt: skip
        if options.race == {"round": 1, "configuration": "b", "loads": 1}:
            doubt = Doubt(code="shared_gpu", severity="suspect", message="m", remedy="r")
            runs = [replace(run, verdict=Verdict.of((doubt,))) for run in runs]
        list(map(saved, runs))
        return runs, whole

    monkeypatch.setattr(tuning, "visit", shared)
    race.run()
    assert sorted(race.race.values["b"]) == [2, 3]
    assert race.left_out_of_rounds([]) == []  # the next start does not visit it once more


def test_a_budget_too_short_for_one_visit_says_so(racing):
    race = racing(a=None)
    race.budget.seconds = 0
    with pytest.raises(Inconclusive, match="the budget of 60 s ended before anything could be measured"):
        tuning.document_of(race, Field(), race.run())


@pytest.mark.parametrize(
    "text",
    [
        '{"failures": [], "proposed": []}',
        '{"failures": {}, "proposed": [{"base": "x", "values": [1]}]}',
        '{"failures": {"a": {"reason": 5}}, "proposed": []}',
        "\x00",
    ],
)
def test_a_damaged_memory_is_set_aside_and_named(tmp_path, text):
    file, said = tmp_path / "tune.json", []
    file.write_text(text)
    assert read_state(file, said.append) == State()
    assert "set aside as tune.json.unreadable" in said[0]
    assert (tmp_path / "tune.json.unreadable").read_text() == text
    assert read_state(file, said.append) == State()
    assert len(said) == 1


def test_where_the_base_is_not_served_the_best_that_is_stands_beside_it(racing):
    race = racing(a=(100, 0.1), b=(60, 0.1))
    found = Field(contestants={
        label: quantized(race.contestants[label], name, kl)
        for label, name, kl in (("a", "gguf-q4_k_m", 0.05), ("b", "gguf-q8_0", 0.001))
    })  # fmt: skip
    assert reference_of(race.job, found).startswith("bf16, which is not served here: the best that is, gguf-q8_0,")
    assert reference_of(race.job, Field(contestants=race.contestants)) == "bf16"


def quantized(contestant, name, kl):
    artifact = replace(contestant.case.artifact, quantization=quantization(name))
    return replace(contestant, case=replace(contestant.case, artifact=artifact), quality={"kl_mean": kl})


def test_an_exhaustive_search_makes_up_for_what_a_round_left_out(racing):
    race = racing(a=(100, 0.1), b=(60, 0.1))
    race.race.record(1, "a", 100.0)
    race.race.record(2, "a", 100.0)
    race.race.record(2, "b", 60.0)
    assert race.left_out_of_rounds([]) == [(1, "b")]
