"""Student's t against its published tables."""

from __future__ import annotations

import pytest

from llmopt.core import student
from llmopt.core.statistics import t_95


@pytest.mark.parametrize(
    ("level", "freedom", "published"),
    [
        (0.025, 1, 12.706),
        (0.025, 10, 2.228),
        (0.005, 8, 3.355),
        (0.005, 4, 4.604),
        (0.0005, 5, 6.869),
        (0.025, 1e6, 1.960),
    ],
)
def test_quantiles_are_those_of_the_tables(level: float, freedom: float, published: float) -> None:
    assert student.quantile(level, freedom) == pytest.approx(published, abs=6e-4)


@pytest.mark.parametrize("freedom", [1, 2.5, 7, 40, 500])
@pytest.mark.parametrize("level", [1e-6, 0.0009, 0.2, 0.5, 0.93])
def test_the_tail_of_a_quantile_is_its_level(level: float, freedom: float) -> None:
    assert student.tail(student.quantile(level, freedom), freedom) == pytest.approx(level, rel=1e-9)


def test_both_tails_make_one() -> None:
    assert student.tail(1.3, 6) + student.tail(-1.3, 6) == pytest.approx(1)


def test_the_usual_level_agrees_with_the_expansion_that_intervals_use() -> None:
    for freedom in (1, 5, 10, 11, 17, 40, 200):
        assert t_95(freedom) == pytest.approx(student.quantile(0.025, freedom), abs=1.5e-3)


@pytest.mark.parametrize("level", [0.0, 1.0, -1.0])
def test_no_quantile_of_what_is_no_probability(level: float) -> None:
    with pytest.raises(ValueError, match="quantile"):
        student.quantile(level, 3)
