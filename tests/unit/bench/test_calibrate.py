from dataclasses import replace

import pytest

from llmopt.bench import calibrate
from llmopt.bench.calibrate import Ceiling, ceiling_of, keep, known_ceiling
from llmopt.core.machine import this_machine
from llmopt.core.metrics import MEASURING_REVISION
from llmopt.serve.scripted import running


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMOPT_HOME", str(tmp_path))


def ceiling(**fields):
    known = {
        "s_per_read": 1e-5, "s_per_request": 1e-4, "measured_at": "now", "machine": this_machine().fingerprint,
        "revision": MEASURING_REVISION,
    }  # fmt: skip
    return Ceiling(**known | fields)


def test_what_was_kept_is_known():
    assert known_ceiling() is None
    keep(ceiling())
    assert known_ceiling() == ceiling()


def test_machines_are_kept_apart():
    keep(ceiling())
    keep(ceiling(machine="other", s_per_read=1.0))
    assert known_ceiling() == ceiling()


@pytest.mark.parametrize("text", ["", "[]", "{}", "5", '{"x": 5}'])
def test_a_damaged_file_is_no_ceiling_and_can_be_written_over(text):
    calibrate.ceiling_file().write_text(text)
    assert known_ceiling() is None


def test_another_revision_of_the_client_says_nothing():
    keep(ceiling(revision=MEASURING_REVISION - 1))
    assert known_ceiling() is None


def test_rates_of_a_ceiling():
    assert ceiling().reads_per_s == pytest.approx(100_000)
    assert ceiling().requests_per_s == pytest.approx(1 / 1.1e-4)


def test_the_share_of_a_load_is_what_it_costs_of_the_time_there_was():
    keep(ceiling())
    found = ceiling_of(reads=50_000, requests=1_000, seconds=2.0, cpu_s=0.1, workers=1)
    assert found["share"] == pytest.approx((50_000 * 1e-5 + 1_000 * 1e-4) / 2.0)
    assert found["source"] == "calibrated"
    assert ceiling_of(reads=50_000, requests=1_000, seconds=2.0, cpu_s=0.1, workers=2)["share"] == found["share"] / 2


def test_a_client_that_was_busier_than_its_calibration_says_is_as_busy_as_it_was():
    keep(ceiling())
    assert ceiling_of(reads=50_000, requests=1_000, seconds=2.0, cpu_s=1.5, workers=1)["share"] == 0.75


def test_without_a_calibration_the_runs_own_processor_time_tells():
    found = ceiling_of(reads=1000, requests=10, seconds=4.0, cpu_s=1.0, workers=1)
    assert (found["share"], found["source"], found["reads_per_s"]) == (0.25, "this run", 1000)


def test_a_run_of_no_time_has_no_share():
    assert ceiling_of(reads=0, requests=0, seconds=0.0, cpu_s=0.0, workers=1)["share"] is None


def test_this_machine_is_calibrated():
    told = []
    with running() as base_url:
        found = calibrate.calibrate(base_url, 1.5, told.append)
    assert 0 < found.s_per_read < 1e-3
    assert 0 <= found.s_per_request < 1e-2
    assert known_ceiling() == replace(found)
    assert len(told) == 2
