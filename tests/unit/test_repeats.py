"""What stored runs of this machine tell of its noise, before a race repeats anything."""

import math
import shutil

import pytest

from llmopt.core.domain import Doubt, Verdict
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

    def add(*values, case="one", days=0, engine="hf", folder="results", **fields):
        nonlocal written
        for hour, value in enumerate(values):
            written += 1
            at = f"2026-01-{1 + days:02}T{hour:02}:00:{written % 60:02}+00:00"
            made = {
                "case_key": case,
                "session": f"start {written}",
                "run_id": f"run-{written}",
                "started_at": at,
            } | fields
            save_record(tmp_path / folder, run("some", engine, metrics=metrics(value), **made))

    def told(metric="output_tps", backends=("hf",), **asked):
        return machine_noise(tmp_path / "results", metric, None, backends, **asked)

    add.told = told
    return add


def three_percent(store, **fields):
    for case in range(5):
        store(100, 103, 100, case=f"case {case} {fields}", **fields)


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


@pytest.mark.parametrize(
    "field",
    [{"case_key": "another"}, {"measuring_revision": 1}, {"commit": "another"}, {"gate": {"side": "candidate"}},
     {"backend": {"name": "hf", "version": "2"}}, {"verdict": Verdict(status="invalid")},
     {"verdict": Verdict(status="suspect", reasons=(Doubt(code="ended_early", severity="suspect", message="cut", remedy=""),))},
     {"verdict": Verdict(status="suspect", reasons=(Doubt(code="throttled", severity="suspect", message="hot", remedy=""),))}],
)  # fmt: skip
def test_what_is_not_alike_is_not_compared(store, field):
    three_percent(store)
    told = store.told()
    store(100, case="more")
    store(300, **{"case": "more"} | field)
    assert store.told() == told


def test_cases_of_the_race_itself_are_left_out(store):
    three_percent(store)
    assert store.told(without=[f"case {case} {{}}" for case in range(5)]) == USUAL_NOISE


def test_what_shifts_a_round_of_a_race_is_no_noise(store):
    for round, whole in ((1, 100.0), (2, 130.0), (3, 80.0)):
        for case in range(8):
            store(
                whole * (1 + case),
                case=f"case {case}",
                race={"round": round},
                days=0,
                started_at=f"2026-01-01T0{round}:00:00",
            )
    assert store.told().freedom == USUAL_NOISE.freedom + 8 * 3 - 8 - 2
    assert store.told().share < USUAL_NOISE.share


def test_races_of_one_day_are_two(store):
    """The first round of the second is no repeat of that of the first."""
    for race in range(2):
        for round, whole in ((1, 100.0 + 50 * race), (2, 130.0)):
            at = f"2026-01-01T0{2 * race + round}:00:00"
            for case in range(8):
                store(whole * (1 + case), case=f"case {case}", race={"round": round}, started_at=at)
    assert store.told().share < USUAL_NOISE.share


def test_a_case_of_one_round_takes_no_freedom_away(store):
    for round in (1, 2):
        for case in range(8):
            store(100.0, case=f"case {case}", race={"round": round}, started_at=f"2026-01-01T0{round}:00:00")
    told = store.told()
    store(100.0, case="lone", race={"round": 1}, started_at="2026-01-01T01:30:00")
    store(100.0, case="lone", race={"round": 3}, started_at="2026-01-01T03:30:00")
    assert store.told() == told


def test_many_repeats_have_the_weight_of_fifty(store):
    for case in range(60):
        store(100, 101, case=f"case {case}")
    assert store.told().freedom == repeats.MOST_FREEDOM


def test_the_noisiest_engine_of_the_race_counts(store):
    three_percent(store)
    for case in range(5):
        store(100, 150, 100, case=f"noisy {case}", engine="llamacpp")
    assert store.told(backends=("hf", "llamacpp")) == store.told(backends=("llamacpp",))
    assert store.told(backends=("llamacpp",)).share > 0.1 > store.told().share


def test_an_engine_of_which_nothing_is_known_leaves_the_usual(store):
    three_percent(store)
    assert store.told() != USUAL_NOISE
    assert store.told(backends=("hf", "vllm")) == USUAL_NOISE


def test_loads_of_one_start_tell_once(store):
    for start in range(6):
        for load in range(5):
            store(100 + start, case=f"load {load}", session=f"server {start}")
    assert store.told().freedom == USUAL_NOISE.freedom + 5


def test_a_race_with_an_outlier_takes_nothing_away_that_was_known(store):
    for case in range(20):
        store(100, 112, 100, case=f"case {case}")
    told = store.told()
    for round, values in ((1, (100, 100)), (2, (100, 220))):
        for case, value in enumerate(values):
            store(value, case=f"race {case}", race={"round": round}, days=3, started_at=f"2026-01-05T0{round}:00:00")
    assert store.told().share > told.share
    assert store.told().freedom == told.freedom + 1


def test_a_start_in_two_folders_tells_once(store):
    for start in range(6):
        store(100 + start, session=f"server {start}")
    told = store.told()
    for start in range(6):
        store(100 + start, case="another load", session=f"server {start}", folder="llmopt-tune/results")
    assert store.told() == told


def test_a_copy_of_the_store_tells_nothing_more(store, tmp_path):
    three_percent(store)
    told = store.told()
    shutil.copytree(tmp_path / "results", tmp_path / "llmopt-tune" / "results")
    assert store.told() == told


def test_one_record_that_cannot_be_read_silences_no_others(store, tmp_path):
    three_percent(store)
    told = store.told()
    store(100, 100, case="odd")
    for file in tmp_path.rglob("run-1[67]*.json"):
        file.write_text(file.read_text().replace('"session": "start', '"session": 5, "was": "start'))
        assert '"session": 5' in file.read_text()
    assert store.told() == told


def test_a_folder_that_is_a_loop_tells_nothing(store, tmp_path):
    (tmp_path / "results").symlink_to(tmp_path / "results")
    assert store.told() == USUAL_NOISE


def test_a_metric_that_no_run_has_is_of_usual_noise(store):
    three_percent(store)
    assert store.told("peak_vram_bytes") == USUAL_NOISE
