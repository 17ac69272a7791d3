import math
import random
import tracemalloc

import pytest

from llmopt.core.statistics import percentile
from llmopt.recommend.ties import beats, beats_by_interval, draws, over_requests, over_runs, stretch


def test_who_is_always_better_surely_beats():
    assert beats([10.0, 10.1, 9.9], [20.0, 20.1, 19.9], lower_is_better=True) > 0.99
    assert beats([10.0, 10.1, 9.9], [20.0, 20.1, 19.9], lower_is_better=False) < 0.01


def test_equals_beat_each_other_half_of_the_time():
    assert beats([5.0] * 3, [5.0] * 3, lower_is_better=True) == 0.5


def test_the_two_probabilities_add_up():
    a, b = [10.0, 11.0, 12.0], [11.0, 12.0, 12.5]
    one, other = beats(a, b, lower_is_better=False), beats(b, a, lower_is_better=False)
    assert one + other == pytest.approx(1, abs=0.05)


def test_of_two_alike_hardly_one_surely_beats_the_other():
    """Three runs a side from one distribution: a sure winner in no more than the 5 % that are allowed, and a little."""
    rng = random.Random(4)
    draw = lambda: [rng.gauss(100, 3) for _ in range(3)]  # noqa: E731
    found = [beats(draw(), draw(), lower_is_better=False) for _ in range(600)]
    assert sum(p > 0.975 or p < 0.025 for p in found) / 600 < 0.08


def test_many_values_leave_no_tables_behind():
    rng = random.Random(6)
    over_runs(range(30))  # numpy keeps what it imports
    tracemalloc.start()
    for count in range(1600, 1605):
        values = [[rng.gauss(mean, 3) for _ in range(count)] for mean in (101, 100)]
        assert beats(*values, lower_is_better=False) > 0.99
        assert over_runs(values[0]) is not None
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 4 << 20  # one table of 1,600 values is 2 MB


@pytest.mark.parametrize("count", [21, 84, 301])
def test_of_many_the_interval_is_the_stretched_bootstrap_of_the_median(count):
    import numpy as np

    values = np.sort(np.random.default_rng(count).normal(100, 3, count))
    drawn = np.median(values[draws(count, 0)], axis=1).tolist()
    ends = [np.median(values) + (percentile(drawn, p) - np.median(values)) * stretch(count) for p in (2.5, 97.5)]
    assert over_runs(values.tolist()) == pytest.approx(ends, rel=1e-12)


def test_a_real_difference_is_found():
    rng = random.Random(5)
    draw = lambda mean: [rng.gauss(mean, 3) for _ in range(5)]  # noqa: E731
    assert sum(beats(draw(120), draw(100), lower_is_better=False) > 0.975 for _ in range(100)) > 95


def test_intervals_that_are_far_apart_decide():
    assert beats_by_interval(10, (9, 11), 20, (19, 21), lower_is_better=True) > 0.999
    assert beats_by_interval(10, (5, 15), 11, (6, 16), lower_is_better=True) == pytest.approx(0.61, abs=0.01)


def test_points_without_width_are_compared_by_themselves():
    assert beats_by_interval(1, (1, 1), 2, (2, 2), lower_is_better=True) == 1
    assert beats_by_interval(1, (1, 1), 1, (1, 1), lower_is_better=True) == 0.5


def test_two_runs_are_too_few_for_an_interval():
    assert over_runs([1.0, 2.0]) is None
    assert over_runs([1.0, 2.0, 3.0]) == (0.0, pytest.approx(2 + 4.303 / math.sqrt(3)))


@pytest.mark.parametrize("count", [3, 4, 5, 8, 25])
def test_an_interval_over_runs_holds_the_truth_as_often_as_it_says(count):
    rng = random.Random(count)
    bounds = [over_runs([rng.gauss(100, 3) for _ in range(count)]) for _ in range(1500)]
    assert 0.93 < sum(low <= 100 <= high for low, high in bounds) / 1500 < 0.97


def test_shares_of_requests_are_over_all_of_them():
    low, high = over_requests([0.0, 0.0, 0.0], [64, 64, 64], 0.0)
    assert (low, high) == (0.0, pytest.approx(0.0196, abs=1e-4))
    assert over_requests([0.0, 0.0, 0.9], [64, 64, 64], 0.0)[0] == 0.0
