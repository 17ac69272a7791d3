import math
import random
from itertools import pairwise

import pytest

from llmopt.recommend.beliefs import Belief, Known, Noise, Prior, student_tail
from llmopt.recommend.racing import Race, least_likely

TRUTH = {f"c{place}": 100 * 0.94**place for place in range(24)}


def play(race, truth, *, noise=0.03, budget=None, seed=0, shift=0.0):
    """Every round measured on a machine with that noise, whose rounds are shifted as a whole; how many runs it took."""
    draw, runs = random.Random(seed), 0
    while arms := race.next_round(None if budget is None else budget - runs):
        whole = draw.gauss(0, shift)
        for arm in arms:
            race.record(race.round, arm, truth[arm] * math.exp(draw.gauss(0, noise) + whole))
        runs += len(arms)
    return runs


def test_best_is_found_with_less_than_half_of_three_rounds():
    found = [(race := Race(list(TRUTH), seed=seed), play(race, TRUTH, seed=seed)) for seed in range(40)]
    assert sum(race.standing().leader == "c0" for race, _ in found) >= 38
    assert sum(runs for _, runs in found) / 40 <= 0.45 * 72


def test_budget_is_never_exceeded():
    near = {f"c{place}": 100 + place / 10 for place in range(24)}
    assert 30 < play(Race(list(near)), near, budget=32) <= 32


def test_shift_of_a_whole_round_changes_no_decision():
    found = [(race := Race(list(TRUTH), seed=seed), play(race, TRUTH, seed=seed, shift=0.3)) for seed in range(40)]
    assert sum(race.standing().leader == "c0" for race, _ in found) >= 38


def test_latency_is_better_when_lower():
    race = Race(["slow", "fast"], better="lower")
    play(race, {"slow": 2.0, "fast": 1.0})
    assert race.standing().leader == "fast"


def test_configurations_of_one_server_are_visited_together():
    arms = [f"{server}{load}" for server in "abc" for load in range(4)]
    order = Race(arms, groups={arm: arm[0] for arm in arms}).next_round()
    assert sum(a[0] != b[0] for a, b in pairwise(order)) == 2


def test_order_is_shuffled_anew_in_every_round():
    race = Race([f"c{place}" for place in range(12)])
    assert sorted(first := race.whole_round()) == sorted(second := race.whole_round())
    assert second != first


def test_later_rounds_are_for_the_leader_and_its_nearest():
    race = Race([f"c{place}" for place in range(12)])
    for arm in race.next_round():
        race.record(1, arm, 100.0 - int(arm[1:]) / 10)
    assert sorted(race.next_round()) == ["c0", "c1", "c2"]


def test_leader_is_as_sure_as_draws_of_all_of_them_say():
    """Three equal ones and one that is far behind: the margin is one standard error of a difference."""
    error = 0.02 / math.sqrt(2)
    level = {"a": 0.0, "b": 0.0, "c": 0.0, "d": -1.0}
    of = {arm: Belief(mean=mean, error=error, freedom=1e6, runs=1) for arm, mean in level.items()}
    draw = random.Random(1)
    tries = [[draw.gauss(0, error) for _ in "abc"] for _ in range(20_000)]
    expected = sum(max(b, c) <= a + 0.02 for a, b, c in tries) / len(tries)
    assert Known(of=of, noise=0.02).chance_of_none(["b", "c", "d"], "a", 0.02) == pytest.approx(expected, abs=0.015)


def test_what_is_shared_by_all_makes_nobody_less_sure():
    of = {arm: Belief(mean=mean, error=0.1, freedom=1e6, runs=1) for arm, mean in (("a", 0.0), ("b", -0.02))}
    shared = dict.fromkeys([("a", "b"), ("b", "a")], 0.1**2 * 0.999)
    assert Known(of=of, noise=0.1).chance_of_none(["b"], "a", 0.02) < 0.7
    assert Known(of=of, noise=0.1, pairs=shared).chance_of_none(["b"], "a", 0.02) > 0.99


def test_who_was_not_looked_at_leaves_nothing_sure():
    race = Race(["a", "b"])
    race.record(1, "a", 100.0)
    assert race.sure(race.standing()) == 0.0


@pytest.mark.parametrize("noise", [Noise(), Noise(share=0.01, freedom=50)])
def test_nobody_wins_by_one_run(noise):
    race = Race(["a", "b", "c"], noise=noise)
    for arm, value in (("a", 100.0), ("b", 50.0), ("c", 10.0)):
        race.record(1, arm, value)
    assert race.standing().settled
    assert sorted(race.next_round()) == ["a", "b"]
    assert race.next_round() == []  # once asked, whatever came of it: a disturbed run leaves no value


def test_nor_does_one_that_came_later():
    race = Race(["a", "b"])
    for round in (1, 2, 3):
        race.record(round, "a", 100.0)
        race.record(round, "b", 95.0)
    race.add("new")
    race.record(4, "a", 100.0)
    race.record(4, "new", 130.0)
    assert race.standing().settled
    assert sorted(race.next_round()) == ["a", "new"]
    assert race.next_round() == []


def test_a_residual_without_a_degree_of_freedom_contradicts_nothing():
    race = Race(["a", "b", "c"], noise=Noise(share=0.01, freedom=50))
    for round, arm, value in ((1, "a", 100.0), (1, "b", 95.0), (1, "c", 90.0), (2, "a", 103.0)):
        race.record(round, arm, value)
    assert race.beliefs().of["a"].freedom == 50


def test_who_was_not_looked_at_has_its_turn_when_all_others_failed():
    race = Race(["a", "b"])
    race.record(1, "a", 100.0)
    race.record(1, "a", failure="the server died")
    assert race.next_round() == ["b"]


def test_noise_that_the_race_finds_much_larger_is_not_believed():
    """Three percent was told by many runs; this race's own are 20 % apart."""
    race = Race(["a", "b"], noise=Noise(share=0.03, freedom=50))
    for round, (a, b) in enumerate(((100, 90), (80, 100), (110, 85), (90, 105)), start=1):
        race.record(round, "a", float(a))
        race.record(round, "b", float(b))
    assert race.standing().noise > 0.09
    assert not race.standing().settled


def test_noise_that_is_known_spares_runs():
    """Of three percent, told by thirty repeats, beside what is usual."""
    spared = [Race(list(TRUTH), seed=seed, noise=Noise(share=0.03, freedom=30)) for seed in range(30)]
    usual = [Race(list(TRUTH), seed=seed) for seed in range(30)]
    runs = [sum(play(race, TRUTH, seed=seed) for seed, race in enumerate(races)) for races in (spared, usual)]
    assert runs[0] < 0.96 * runs[1]
    assert sum(race.standing().leader == "c0" for race in spared) >= 28


def test_failure_drops_a_configuration_with_its_reason():
    race = Race(["a", "b"])
    race.next_round()
    race.record(1, "a", failure="out of memory")
    race.record(1, "b", 10.0)
    assert race.standing().dropped == {"a": "out of memory"}
    assert race.standing().settled == "one is left"


def test_late_failure_takes_the_lead_away():
    race = Race(["a", "b"])
    race.record(1, "a", 20.0)
    race.record(1, "b", 10.0)
    race.record(2, "a", failure="the server died")
    assert race.standing().leader == "b"


def test_race_without_a_survivor_is_over():
    race = Race(["a"])
    race.next_round()
    race.record(1, "a", failure="does not start")
    assert race.next_round() == []
    assert race.standing().settled == "no configuration could be measured"


def test_dropped_one_comes_back_when_later_rounds_are_noisier_than_was_thought():
    race = Race(["a", "b", "c"], noise=Noise(share=0.01))
    for arm, value in (("a", 100.0), ("b", 99.0), ("c", 93.0)):
        race.record(1, arm, value)
    assert "c" in race.standing().dropped
    for arm, value in (("a", 80.0), ("b", 115.0)):
        race.record(2, arm, value)
    assert "c" not in race.standing().dropped


def test_reason_of_a_loser_names_gap_and_rounds():
    race = Race(["a", "b"])
    race.record(1, "a", 100.0)
    race.record(1, "b", 50.0)
    assert race.standing().dropped["b"].startswith("50% behind a [")
    assert race.standing().dropped["b"].endswith("after 1 round")


def test_equals_end_the_race_as_equals():
    race = Race(["a", "b"], noise=Noise(share=0.001))
    for round in range(1, 30):
        race.record(round, "a", 100.0)
        race.record(round, "b", 100.01)
    assert race.standing().settled == "the leader is sure enough"
    assert race.sure(race.standing()) > 0.99
    assert len(race.standing().survivors) == 2


def test_outcomes_of_an_earlier_start_are_not_asked_for_again():
    race = Race(list("abcd"))
    for arm in "ab":
        race.record(1, arm, 100.0)
    assert {"c", "d"} <= set(race.next_round())


def test_prediction_spares_the_hopeless():
    prior = {arm: Prior(value=value, error=0.15) for arm, value in TRUTH.items()}
    race = Race(list(TRUTH), prior=prior)
    runs = play(race, TRUTH, budget=25)
    assert race.standing().leader == "c0"
    assert runs < 24
    assert "never measured" in race.standing().dropped["c23"] or race.values.get("c23")


def test_prediction_that_was_shown_wrong_excludes_nobody():
    upside_down = {arm: Prior(value=1 / value, error=0.15) for arm, value in TRUTH.items()}
    race = Race(list(TRUTH), prior=upside_down)
    play(race, TRUTH, budget=40)
    assert race.standing().leader == "c0"


def test_scale_of_the_predictions_does_not_matter():
    prior = {arm: Prior(value=value * 7, error=0.15) for arm, value in TRUTH.items()}
    race = Race(list(TRUTH), prior=prior)
    play(race, TRUTH, budget=25)
    assert race.standing().leader == "c0"


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_what_is_no_quantity_is_refused(value):
    with pytest.raises(ValueError, match="no positive quantity"):
        Race(["a"]).record(1, "a", value)


def test_arms_that_come_twice_are_refused():
    with pytest.raises(ValueError, match="each once"):
        Race(["a", "a"])


def test_least_likely_stay_within_the_error():
    assert least_likely({"a": 0.01, "b": 0.02, "c": 0.03, "d": 0.5}, 0.05) == {"a", "b"}


@pytest.mark.parametrize(
    ("t", "freedom", "tail"), [(2.132, 4, 0.05), (1.812, 10, 0.05), (0.0, 5, 0.5), (-2.132, 4, 0.95)]
)
def test_student_tail_is_that_of_the_table(t, freedom, tail):
    assert student_tail(t, freedom) == pytest.approx(tail, abs=0.002)
