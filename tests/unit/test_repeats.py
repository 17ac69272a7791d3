"""What stored runs of this machine tell of its noise, before a race repeats anything."""

import math
from pathlib import Path

import pytest

from llmopt.core.store import save_record
from llmopt.pipeline import repeats
from llmopt.pipeline.repeats import machine_noise
from llmopt.recommend.beliefs import USUAL_NOISE
from unit.make import MACHINE, metrics, run


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Writes runs of these throughputs of one case, each of a start of its own, an hour apart."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(repeats, "this_machine", lambda: MACHINE)
    written = 0

    def add(*values, case="one", days=0, **fields):
        nonlocal written
        for hour, value in enumerate(values):
            written += 1
            made = {"case_key": case, "session": f"start {written}", "run_id": f"run-{written}"} | fields
            save_record(
                tmp_path / "results",
                run("some", metrics=metrics(value), started_at=f"2026-01-{1 + days:02}T{hour:02}:00:00+00:00", **made),
            )

    def told(**asked):
        return machine_noise(tmp_path / "results", "output_tps", None, **asked)

    add.told = told
    return add


def test_nothing_stored_is_the_usual_noise(store):
    assert store.told() == USUAL_NOISE


def test_repeats_tell_it_by_their_own_spread(store):
    for case in range(10):
        store(100, 100 * math.exp(0.02), 100 * math.exp(0.04), case=f"case {case}")
    assert store.told().freedom == USUAL_NOISE.freedom + 20
    rest = 10 * 2 * 0.02**2
    assert store.told().share == pytest.approx(math.sqrt((rest + USUAL_NOISE.freedom * USUAL_NOISE.share**2) / 24))


def test_runs_of_one_start_are_one(store):
    store(100, 150, session="the same")
    assert store.told() == USUAL_NOISE


def test_a_run_that_does_not_tell_its_start_is_none(store):
    store(100, 150, session="")
    assert store.told() == USUAL_NOISE


def test_days_are_not_compared(store):
    for day in range(5):
        store(100 + 50 * day, days=day)
    assert store.told() == USUAL_NOISE


@pytest.mark.parametrize("field", [{"case_key": "of the race"}, {"measuring_revision": 1}])
def test_other_cases_are_not_compared(store, field):
    store(100)
    store(150, **field)
    assert store.told() == USUAL_NOISE


def test_cases_of_the_race_itself_are_left_out(store):
    store(100, 150)
    assert store.told(without=["one"]) == USUAL_NOISE


def test_what_shifts_a_round_of_a_race_is_no_noise(store):
    for round, whole in ((1, 100.0), (2, 130.0), (3, 80.0)):
        for case in range(8):
            store(whole * (1 + case), case=f"case {case}", race={"round": round})
    assert store.told().freedom == USUAL_NOISE.freedom + 8 * 3 - 8 - 2
    assert store.told().share < USUAL_NOISE.share


def test_thousands_of_repeats_count_as_thirty(store):
    for case in range(60):
        store(100, 101, case=f"case {case}")
    assert store.told().freedom == repeats.MOST_FREEDOM


def test_a_metric_that_no_run_has_is_of_usual_noise(store):
    store(100, 150)
    assert machine_noise(Path("results"), "peak_vram_bytes", None) == USUAL_NOISE
