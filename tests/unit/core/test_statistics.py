import math
import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmopt.core.statistics import (
    block_interval,
    blocks,
    bootstrap,
    distribution,
    drifts,
    mser,
    percentile,
    relative_spread,
    t_95,
    wilson,
)

np = pytest.importorskip("numpy")
numbers = st.floats(-1e6, 1e6)
samples = st.lists(numbers, min_size=1, max_size=120)
percents = st.integers(1, 100)


def mean(values):
    return sum(values) / len(values)


def test_percentile_is_the_nearest_rank():
    assert [percentile([10, 20, 30, 40], p) for p in (25, 26, 50, 75, 76, 100)] == [10, 20, 20, 30, 40, 40]


@example(100, 7)  # 7 / 100 * 100 is a little more than 7
@given(st.integers(1, 5000), percents)
def test_percentile_of_a_count_is_its_exact_rank(count, percent):
    assert percentile(range(1, count + 1), percent) == -(-percent * count // 100)


@given(samples, percents)
def test_percentile_is_the_smallest_value_with_enough_of_the_sample_at_or_below(values, percent):
    found = percentile(values, percent)
    assert sum(v <= found for v in values) * 100 >= percent * len(values)
    assert sum(v < found for v in values) * 100 < percent * len(values)


@given(samples, percents, st.integers())
def test_percentile_does_not_depend_on_order(values, percent, seed):
    shuffled = random.Random(seed).sample(values, len(values))
    assert percentile(shuffled, percent) == percentile(values, percent)


@given(samples, st.floats(0, 100), st.floats(0, 100))
def test_percentile_grows_with_percent_and_stays_in_the_sample(values, a, b):
    low, high = percentile(values, min(a, b)), percentile(values, max(a, b))
    assert min(values) <= low <= high <= max(values)


def test_percentile_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="empty"):
        percentile([], 50)


@pytest.mark.parametrize(("statistic", "needed"), [("p90", 29), ("p95", 59), ("p99", 299)])
def test_upper_percentiles_need_enough_samples(statistic, needed):
    assert distribution([1.0] * (needed - 1))[statistic] is None
    assert distribution([1.0] * needed)[statistic] == 1.0


def test_missing_samples_count_towards_the_number():
    assert distribution([1.0] * 58, missing=1)["n"] == 59


def test_missing_samples_move_the_upper_tail_up():
    times = [float(n) for n in range(1, 101)]
    assert distribution(times)["p95"] == 95.0
    assert distribution(times, missing=4)["p95"] == 99.0


def test_a_percentile_among_the_missing_is_unknown():
    assert distribution([1.0] * 90, missing=10)["p95"] is None


def test_missing_samples_count_as_minus_infinity_where_higher_is_better():
    speeds = [float(n) for n in range(1, 101)]
    assert distribution(speeds, missing=10, worst=-math.inf)["p50"] == 45.0
    assert distribution(speeds, missing=101, worst=-math.inf)["p50"] is None


@given(st.lists(numbers, max_size=80), st.integers(0, 400), st.sampled_from([math.inf, -math.inf]))
def test_distribution_never_holds_infinity(values, missing, worst):
    found = distribution(values, missing=missing, worst=worst)
    assert all(v is None or math.isfinite(v) for v in found.values())


def test_distribution_of_nothing_is_unknown():
    found = distribution([])
    assert found["n"] == 0
    assert all(found[name] is None for name in ("mean", "p50", "p95", "min", "max"))


def test_mean_min_and_max_are_of_the_values_that_exist():
    found = distribution([1.0, 3.0], missing=5)
    assert (found["mean"], found["min"], found["max"]) == (2.0, 1.0, 3.0)


def test_wilson_of_eight_in_ten():
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_wilson_without_trials_knows_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


@given(st.integers(1, 500), st.data())
def test_wilson_holds_the_share_and_stays_a_share(trials, data):
    successes = data.draw(st.integers(0, trials))
    low, high = wilson(successes, trials)
    assert 0 <= low <= successes / trials + 1e-12
    assert successes / trials - 1e-12 <= high <= 1


def test_bootstrap_needs_three_items():
    assert bootstrap([1.0, 2.0], mean) is None


def test_bootstrap_of_equal_items_is_a_point():
    assert bootstrap([4.0] * 5, mean) == (4.0, 4.0)


def test_bootstrap_repeats_itself_with_the_same_seed():
    values = [1.0, 5.0, 2.0, 8.0]
    assert bootstrap(values, mean, seed=3) == bootstrap(values, mean, seed=3)


def test_bootstrap_is_unknown_when_the_statistic_is():
    assert bootstrap([1.0, 2.0, 3.0], lambda _: None) is None
    assert bootstrap([1.0, 2.0, 3.0], lambda _: math.inf) is None


def test_bootstrap_is_wider_for_more_confidence():
    values = [float(n) for n in range(20)]
    wide, narrow = bootstrap(values, mean, confidence=0.99), bootstrap(values, mean, confidence=0.5)
    assert wide[0] < narrow[0] < mean(values) < narrow[1] < wide[1]


def test_bootstrap_of_the_mean_is_near_the_normal_interval():
    values = [random.Random(1).gauss(10, 2) for _ in range(200)]
    low, high = bootstrap(values, mean)
    spread = math.sqrt(sum((v - mean(values)) ** 2 for v in values) / 200 / 200)
    assert (high - low) == pytest.approx(2 * 1.96 * spread, rel=0.2, abs=0.01)


def normal(count, seed=1):
    return np.random.default_rng(seed).normal(10, 2, count)


@pytest.mark.parametrize("percent", [None, 50, 95])
def test_block_interval_is_the_bootstrap_over_blocks(percent):
    values = normal(400)

    def statistic(parts):
        every = [v for part in parts for v in part]
        return mean(every) if percent is None else percentile(every, percent)

    slow = bootstrap(blocks(list(values), 20), statistic, resamples=2000)
    assert block_interval(values, percent, count=20, resamples=2000) == pytest.approx(slow, rel=0.01)


def test_block_interval_of_equal_values_is_a_point():
    assert block_interval(np.full(40, 4.0), 95, count=8) == (4.0, 4.0)


def test_block_interval_needs_three_values():
    assert block_interval(normal(2), 50, count=8) is None


def test_failures_count_in_the_interval_of_a_percentile_and_not_of_the_mean():
    values = np.where(np.arange(100) % 3 == 0, np.inf, 1.0)
    assert block_interval(values, None, count=10) == (1.0, 1.0)
    assert block_interval(values, 50, count=10) == (1.0, 1.0)
    assert block_interval(values, 95, count=10) is None


def test_mser_cuts_where_a_step_ends():
    assert mser(np.concatenate([normal(30) + 20, normal(200, seed=2)])) == 30


def test_mser_cuts_no_more_than_half():
    assert mser(np.concatenate([normal(80) + 20, normal(20, seed=2)])) <= 50


@pytest.mark.parametrize("count", [0, 1, 19])
def test_mser_leaves_short_series_alone(count):
    assert mser(normal(count)) == 0


def test_a_slope_drifts_and_its_noise_does_not():
    assert drifts(normal(200) + np.linspace(0, 10, 200))
    assert not drifts(normal(200))


def test_a_slope_that_nobody_would_notice_is_none():
    assert not drifts(np.linspace(10, 10.5, 200))


def test_too_few_batches_show_no_drift():
    assert not drifts(np.linspace(1, 100, 64), batch=32)


@given(st.lists(st.integers(), max_size=60), st.integers(1, 12))
def test_blocks_keep_every_item_in_order(items, count):
    parts = blocks(items, count)
    assert [item for part in parts for item in part] == items
    assert len(parts) <= count


@given(st.lists(st.integers(), min_size=1, max_size=60), st.integers(1, 12))
def test_blocks_are_of_nearly_equal_size(items, count):
    sizes = [len(part) for part in blocks(items, count)]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1


def test_relative_spread():
    assert relative_spread([90.0, 110.0]) == pytest.approx(0.2)
    assert relative_spread([90.0]) is None


def test_the_interval_of_a_ratio_holds_the_truth_as_often_as_it_says():
    import random

    from llmopt.core.statistics import ratio_interval

    generator = random.Random(1)
    for runs in (2, 3, 5):
        held = 0
        for _ in range(1000):
            sides = [[math.exp(generator.gauss(0, 0.03)) for _ in range(runs)] for _ in range(2)]
            low, high = ratio_interval(*sides)
            held += low <= 1 <= high
        assert held > 930


def test_a_ratio_has_no_interval_without_two_a_side_or_with_a_zero():
    from llmopt.core.statistics import ratio_interval

    assert ratio_interval([1.0], [1.0, 2.0]) is None
    assert ratio_interval([0.0, 1.0], [1.0, 2.0]) is None
    assert ratio_interval([2.0, 2.0], [4.0, 4.0]) == (2.0, 2.0)


@pytest.mark.parametrize(
    ("freedom", "known"), [(1, 12.706), (10, 2.228), (11, 2.201), (12, 2.179), (15, 2.131), (30, 2.042), (120, 1.980)]
)
def test_students_t_is_that_of_the_tables(freedom, known):
    assert t_95(freedom) == pytest.approx(known, abs=0.001)
