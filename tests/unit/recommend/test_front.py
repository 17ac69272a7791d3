import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.core.domain import Goal
from llmopt.recommend.front import axes, dominators, knee
from llmopt.recommend.rank import recommend
from unit.make import candidate

NUMBERS = st.integers(1, 4)


def behind(candidates):
    return {key: other for key, other in dominators(candidates, list(axes(candidates).values())).items() if other}


@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), max_size=7))
def test_the_front_is_what_nobody_is_behind_of_by_the_definition(figures):
    made = [candidate(str(n), 10.0 * t, float(s), 10.0 * m, runs=1) for n, (t, s, m) in enumerate(figures)]

    def dominates(one, other):
        (t1, s1, m1), (t2, s2, m2) = one, other
        return t1 >= t2 and s1 <= s2 and m1 <= m2 and one != other

    expected = {made[n].key for n, own in enumerate(figures) if any(dominates(other, own) for other in figures)}
    assert set(behind(made)) == expected


def test_an_estimate_is_no_reason_against_a_measurement():
    guess, real = candidate("guess", 900, evidence="estimated"), candidate("real", 100)
    assert behind([guess, real]) == {}
    found = recommend([guess, real], Goal()).ranked
    assert [r.label for r in found] == ["real on hf", "guess on hf"]
    assert any("estimated, not measured" in reason for reason in found[1].reasons)


def bent(*points):
    made = [candidate(f"c{n}", throughput, latency_s, runs=1) for n, (throughput, latency_s) in enumerate(points)]
    every = axes(made)
    found = knee(made, every["throughput"], every["latency"])
    return None if found is None else found.identity["name"]


def test_the_knee_is_farthest_from_the_line_between_the_ends():
    assert bent((100, 1.0), (190, 1.2), (195, 2.0), (200, 5.0)) == "c1"


def test_a_straight_front_has_no_knee():
    assert bent((100, 1.0), (200, 2.0), (300, 3.0)) is None


def test_two_points_have_no_knee():
    assert bent((100, 1.0), (200, 2.0)) is None


def test_the_knee_is_marked_and_explained():
    made = [candidate("a", 100, 1.0), candidate("b", 190, 1.2), candidate("c", 200, 5.0)]
    (found,) = [r for r in recommend(made, Goal()).ranked if r.knee]
    assert found.label == "b on hf"
    assert any("the knee of the front" in reason for reason in found.reasons)


@given(st.permutations(range(6)))
def test_rank_groups_front_and_knee_do_not_depend_on_the_order_of_the_input(order):
    made = [candidate(f"c{n}", 100 + 3 * (n // 2), 1 + n / 10, 10.0 * (7 - n)) for n in range(6)]
    one, other = (
        [(r.label, r.rank, r.tie_group, r.on_front, r.knee, r.beats_next) for r in recommend(list_, Goal()).ranked]
        for list_ in (made, [made[n] for n in order])
    )
    assert one == other


def test_of_those_that_tie_in_the_first_objective_the_second_decides():
    made = [candidate("fast", 101, kl=0.05), candidate("close", 100, kl=0.001), candidate("slow", 50, kl=0.0001)]
    found = recommend(made, Goal(optimize="throughput,quality")).ranked
    assert [r.label for r in found] == ["close on hf", "fast on hf", "slow on hf"]


@pytest.mark.parametrize(("optimize", "first"), [("quality", "close"), ("cost", "fast"), ("ttft_p95", "quick")])
def test_objectives(optimize, first):
    made = [
        candidate("fast", 300, 2.0, kl=0.05),
        candidate("close", 100, 2.0, kl=0.001),
        candidate("quick", 90, 0.5, kl=0.05),
    ]
    price = 2.0 if optimize == "cost" else None
    for one in made:
        one.curves.price_per_hour = price
    found = recommend(made, Goal(optimize=optimize, price_per_hour=price)).ranked
    assert found[0].label == f"{first} on hf"
