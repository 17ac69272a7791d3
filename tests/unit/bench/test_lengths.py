import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.bench.lengths import LOGNORMAL_TAIL, parse_lengths
from llmopt.core.errors import UsageError


def drawn(text, count=4000, seed=1):
    generator = random.Random(seed)
    lengths = parse_lengths(text, "--input-tokens")
    return [lengths.draw(generator) for _ in range(count)]


def test_one_number_is_always_that():
    assert set(drawn(" 32 ")) == {32}


def test_uniform_has_every_length_between_its_ends():
    assert set(drawn("uniform:3:7")) == {3, 4, 5, 6, 7}


def test_lognormal_has_the_wanted_mean_and_deviation():
    found = drawn("lognormal:200:80", 20_000)
    assert statistics.mean(found) == pytest.approx(200, rel=0.03)
    assert statistics.stdev(found) == pytest.approx(80, rel=0.08)


def test_lognormal_is_cut_at_its_longest():
    assert max(drawn("lognormal:20:40:50")) == 50
    assert parse_lengths("lognormal:20:40", "").longest == 20 * LOGNORMAL_TAIL


@given(
    st.builds("uniform:{}:{}".format, st.integers(1, 50), st.integers(50, 99))
    | st.builds("lognormal:{}:{}:{}".format, st.integers(1, 50), st.integers(1, 500), st.integers(50, 99)),
    st.integers(),
)
def test_no_length_is_out_of_bounds_and_a_seed_repeats(text, seed):
    found, lengths = drawn(text, 50, seed), parse_lengths(text, "")
    assert lengths.low <= min(found) <= max(found) <= lengths.longest
    assert found == drawn(text, 50, seed)


@pytest.mark.parametrize(
    "text",
    ["", "x", "0", "-3", "1.5", "uniform", "uniform:9:3", "uniform:0:3", "uniform:3", "lognormal:5", "lognormal:9:1:3", "fixed:3:4"],
)  # fmt: skip
def test_what_is_no_length_names_its_option(text):
    with pytest.raises(UsageError, match="--output-tokens") as caught:
        parse_lengths(text, "--output-tokens")
    assert caught.value.hint.startswith("--output-tokens ")
