"""Steps in a history: seldom where there is only noise, nearly always where there is one, and with the right words."""

import math

import pytest

from llmopt.core.domain import Verdict
from llmopt.core.metric_table import parse_metric
from llmopt.gate.history import find_steps, series_of, steps_of
from unit.make import run

np = pytest.importorskip("numpy")
OUTPUT, LATENCY = parse_metric("output_tps"), parse_metric("e2e_p50")


def share(found, histories):
    return np.mean([found(values) for values in histories])


def noise(points, count=2000, seed=1):
    return np.random.default_rng(seed).standard_normal((count, points))


@pytest.mark.parametrize("points", [10, 30, 60])
def test_noise_alone_has_a_step_in_at_most_one_of_a_hundred_histories(points):
    assert share(lambda v: bool(find_steps(v)), noise(points)) <= 0.01


@pytest.mark.parametrize(("freedom", "most"), [(5, 0.01), (3, 0.02)])
def test_noise_with_far_outliers_has_hardly_more(freedom, most):
    histories = np.random.default_rng(2).standard_t(freedom, (2000, 30))
    assert share(lambda v: bool(find_steps(v)), histories) <= most


@pytest.mark.parametrize(("points", "place"), [(16, 8), (30, 8), (30, 22)])
def test_a_step_of_three_deviations_with_eight_points_each_side_is_found(points, place):
    step = 3.0 * (np.arange(points) >= place)
    assert share(lambda v: any(abs(p - place) <= 2 for p in find_steps(v)), noise(points) + step) >= 0.95


def test_a_spell_that_came_and_went_is_two_steps():
    spell = 4.0 * ((np.arange(40) >= 16) & (np.arange(40) < 22))
    assert share(lambda v: len(find_steps(v)) == 2, noise(40, count=500) + spell) >= 0.9


def test_two_steps_up_are_both_found():
    stairs = 4.0 * (np.arange(36) >= 12) + 4.0 * (np.arange(36) >= 24)
    assert share(lambda v: len(find_steps(v)) == 2, noise(36, count=500) + stairs) >= 0.9


def test_one_odd_session_is_no_step():
    values = list(noise(20, count=1)[0])
    values[9] += 30
    assert find_steps(values) == []


@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_few_sessions_have_no_step(count):
    assert find_steps([1.0, 1.0, 1.0, 9.0, 9.0][:count]) == []


def test_what_never_moves_has_no_step():
    assert steps_of([0.1] * 20, *OUTPUT[:1], absolute=True) == ()


def test_memory_without_noise_steps_where_it_changes():
    (step,) = steps_of([math.log(1e9)] * 5 + [math.log(1.1e9)] * 5, parse_metric("peak_rss_bytes")[0], False)
    assert step.place == 5
    assert step.worse
    assert step.change == pytest.approx(0.1)


def test_memory_that_moves_by_a_page_does_not_step():
    assert steps_of([math.log(1e9)] * 5 + [math.log(1e9 + 4096)] * 5, parse_metric("peak_rss_bytes")[0], False) == ()


def test_the_interval_of_a_step_covers_what_was_put_in():
    histories = noise(16) * 0.02 + 0.06 * (np.arange(16) >= 8)
    found = [steps for v in histories if len(steps := steps_of(list(v), LATENCY[0], False)) == 1]
    covered = np.mean([math.log1p(one.low) < 0.06 < math.log1p(one.high) for (one,) in found])
    assert covered >= 0.93


# --- points -------------------------------------------------------------------------------------------------------


def runs_of(values, **fields):
    return [
        run(throughput=value, run_id=f"r{n}", started_at=f"2026-01-{n + 1:02}T10:00:00.000+00:00",
            **{"session": f"s{n}"} | fields)
        for n, value in enumerate(values)
    ]  # fmt: skip


def test_runs_of_a_session_are_one_point():
    series = series_of(runs_of([100.0, 400.0], session="one"), *OUTPUT)
    assert [round(p.value) for p in series.points] == [200]


def test_runs_without_a_session_are_one_point_a_day_and_commit():
    made = runs_of([100.0, 100.0], session="", commit="a") + runs_of([100.0], session="", commit="b")
    assert len(series_of(made, *OUTPUT).points) == 3


def test_invalid_runs_are_no_point():
    bad = runs_of([1.0], verdict=Verdict(status="invalid"))
    assert len(series_of(bad + runs_of([100.0, 101.0, 102.0])[1:], *OUTPUT).points) == 2


def test_less_throughput_is_worse_and_less_latency_is_better():
    values = [100, 101, 99, 100, 80, 81, 79, 80]
    (down,) = series_of(runs_of(map(float, values)), *OUTPUT).steps
    assert down.worse
    assert down.change == pytest.approx(-0.2, abs=0.01)
    latencies = [run(metrics={"e2e_s": {"p50": v / 100}}, session=str(v), started_at=f"2026-01-01T10:{n:02}:00+00:00")
                 for n, v in enumerate([100.0, 101.0, 99.0, 80.0, 81.0, 79.0])]  # fmt: skip
    (faster,) = series_of(latencies, *LATENCY).steps
    assert not faster.worse


def test_quality_is_followed_as_a_difference():
    made = [run(quality={"kl_mean": v}, session=str(n), started_at=f"2026-01-01T10:{n:02}:00+00:00")
            for n, v in enumerate([0.01] * 4 + [0.05] * 4)]  # fmt: skip
    (step,) = series_of(made, *parse_metric("kl")).steps
    assert step.change == pytest.approx(0.04)
    assert step.worse
