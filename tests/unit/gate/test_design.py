"""Blocks and looks, planned beforehand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.core.errors import UsageError
from llmopt.gate.design import ORDERS, make_design, spend


@given(st.integers(2, 120), st.integers(0, 1 << 31))
def test_the_looks_spend_all_of_the_error_and_no_more(blocks: int, seed: int) -> None:
    design = make_design(blocks, 0.99, seed)
    assert sum(design.spent) == pytest.approx(0.01)
    assert min(design.spent) > 0
    assert design.looks[-1] == blocks


@given(st.integers(2, 60), st.integers(0, 1 << 31))
def test_orders_are_in_balance(blocks: int, seed: int) -> None:
    orders = make_design(blocks, 0.99, seed).orders
    assert abs(orders.count(ORDERS[0]) - orders.count(ORDERS[1])) <= 1


def test_more_blocks_begin_with_the_same_orders() -> None:
    assert make_design(30, 0.99, 7).orders[:12] == make_design(12, 0.99, 7).orders


def test_orders_depend_on_the_seed() -> None:
    assert len({make_design(20, 0.99, seed).orders for seed in range(5)}) > 1


def test_no_look_that_was_not_planned() -> None:
    design = make_design(20, 0.99, 0)
    assert design.error_at(6, ended=False) is None
    assert design.error_at(5, ended=False) == design.spent[0]


def test_an_experiment_that_ends_early_spends_what_is_left() -> None:
    design = make_design(20, 0.99, 0)
    assert design.error_at(18, ended=True) == pytest.approx(design.spent[-1])
    assert design.error_at(8, ended=True) == pytest.approx(sum(design.spent[1:]))


def test_early_looks_are_expensive() -> None:
    first, *_, last = spend(0.01, (5, 10, 20))
    assert first < last / 5


@pytest.mark.parametrize(
    ("blocks", "confidence"), [(1, 0.99), (0, 0.99), (-3, 0.99), (5, 1.0), (5, 0.0), (5, 0.5), (5, 99.0)]
)
def test_what_is_no_design_is_refused(blocks: int, confidence: float) -> None:
    with pytest.raises(UsageError):
        make_design(blocks, confidence, 0)
