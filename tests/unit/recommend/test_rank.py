import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.core.domain import Doubt, Goal, Verdict
from llmopt.core.limits import parse_limit
from llmopt.recommend.constraints import make_goal
from llmopt.recommend.rank import Ranking, recommend
from unit.make import QUALITY, candidate, distribution

ANY = Goal()


def names(rows):
    return [r.case["artifact"]["quantization"] for r in rows]


def ranked(*candidates, goal=ANY):
    return recommend(candidates, goal).ranked


def because(one, *limits):
    found = recommend([one], Goal(limits=tuple(parse_limit(text) for text in limits)))
    assert found.ranked == ()
    return found.rejected[0].because


FAST = candidate("fast", throughput=200, latency_s=2.0, memory=3e9)
QUICK = candidate("quick", throughput=100, latency_s=0.5, memory=4e9)
SMALL = candidate("small", throughput=50, latency_s=3.0, memory=1e9)


@pytest.mark.parametrize(
    ("objective", "order"),
    [
        ("throughput", ["fast", "quick", "small"]),
        ("latency", ["quick", "fast", "small"]),
        ("memory", ["small", "fast", "quick"]),
    ],
)
def test_the_objective_decides_the_order(objective, order):
    found = ranked(SMALL, QUICK, FAST, goal=Goal(optimize=objective))
    assert names(found) == order
    assert [r.rank for r in found] == [1, 2, 3]
    assert all(r.on_front for r in found)


@given(st.permutations([FAST, QUICK, SMALL]))
def test_the_ranking_does_not_depend_on_the_order_of_the_runs(order):
    assert names(ranked(*order)) == ["fast", "quick", "small"]


def test_ranking_nothing():
    assert recommend([], ANY) == Ranking()


def test_a_dominated_one_keeps_its_place_by_the_objective_and_says_why_it_is_behind():
    worse = candidate("worse", throughput=190, latency_s=2.5, memory=3.5e9)
    found = ranked(worse, FAST, QUICK, SMALL)
    assert names(found) == ["fast", "worse", "quick", "small"]
    assert [r.on_front for r in found] == [True, False, True, True]
    assert any("behind the front: fast on hf" in reason for reason in found[1].reasons)


def test_equals_do_not_dominate_each_other():
    assert all(r.on_front for r in ranked(candidate("a"), candidate("b")))


def test_who_does_not_surely_beat_another_ties_with_it():
    found = ranked(candidate("a", 100), candidate("b", 99, latency_s=0.9), candidate("c", 50, latency_s=0.5))
    assert [r.tie_group for r in found] == [1, 1, 2]
    assert any("ties in throughput with b on hf: P(better) 0." in reason for reason in found[0].reasons)
    assert not any("ties" in reason for reason in found[2].reasons)


def test_each_says_how_surely_it_beats_the_next():
    first, second, last = ranked(candidate("a", 100), candidate("b", 99), candidate("c", 50))
    assert first.beats_next["over"] == "runs"
    assert 0.5 < first.beats_next["probability"] < 0.975 < second.beats_next["probability"]
    assert last.beats_next is None


def test_one_run_each_is_compared_over_blocks_within_the_run():
    def single(name, throughput):
        bounds = {"output_tps": {"low": throughput - 2, "high": throughput + 2, "over": "blocks"}}
        return candidate(name, throughput, runs=1, intervals=bounds)

    found = ranked(single("a", 100), single("b", 99), single("c", 50))
    assert [r.tie_group for r in found] == [1, 1, 2]
    assert found[0].beats_next["over"] == "blocks within the run"


def test_a_tie_is_with_the_leader_and_not_with_a_chain():
    chain = [candidate(str(n), throughput=100 - 3 * n, latency_s=1 - n / 10) for n in range(3)]
    assert [r.tie_group for r in ranked(*chain)] == [1, 1, 2]


def test_without_an_interval_the_figures_order_and_nobody_surely_wins():
    bare = [candidate(n, throughput=t, latency_s=s, runs=1) for n, t, s in (("a", 9, 3), ("b", 9, 3), ("c", 4, 1))]
    found = ranked(*bare)
    assert [r.tie_group for r in found] == [1, 1, 2]
    assert "ties in throughput with b on hf: their figures are equal" in found[0].reasons
    assert "before c on hf by its figure alone: no interval, run each three times" in found[1].reasons
    assert found[1].beats_next["probability"] is None


def test_a_first_objective_without_intervals_is_not_passed_over_for_the_second():
    """Memory of single runs: a peak has no interval."""
    made = [candidate("huge", 100, memory=16e9, runs=1), candidate("small", 90, memory=2e9, runs=1)]
    assert names(ranked(*made, goal=Goal(optimize="memory,throughput"))) == ["small", "huge"]


def test_a_leader_without_an_interval_does_not_make_others_tie():
    made = [candidate("single", 120, runs=1), candidate("good", 110), candidate("bad", 50.1, latency_s=5.0)]
    assert [r.tie_group for r in ranked(*made)] == [1, 2, 3]


def test_who_is_surely_worse_than_one_that_is_not_told_apart_from_the_front_is_behind_it():
    made = [candidate("single", 120, runs=1), candidate("good", 110), candidate("bad", 50)]
    found = ranked(*made)
    assert [r.on_front for r in found] == [True, True, False]
    assert "behind the front: good on hf is at least as good in everything" in found[2].reasons


def test_who_has_no_figures_is_behind_those_who_have():
    dark = candidate("dark", memory=None, figures={"output_tps": None, "e2e_s": None})
    assert [(r.label, r.on_front) for r in ranked(dark, candidate("good"))] == [
        ("good on hf", True),
        ("dark on hf", False),
    ]


def test_who_is_not_surely_worse_is_not_behind_the_front():
    near, far = candidate("near", 99.9, spread=0.05), candidate("far", 50)
    found = ranked(candidate("best", 100, spread=0.05), near, far)
    assert [r.on_front for r in found] == [True, True, False]
    assert any("not told apart from the front: best on hf" in reason for reason in found[1].reasons)
    assert not any("behind" in reason for reason in found[1].reasons)


def test_a_broken_limit_rejects_with_what_was_measured():
    assert because(candidate(latency_s=1.0), "ttft_p95<50ms") == ("ttft_p95<50ms: measured 100.0 ms",)


def test_every_broken_limit_is_named():
    assert len(because(candidate(), "ttft_p95<50ms", "output_tps>500")) == 2


@pytest.mark.parametrize(
    ("limit", "kept"), [("output_tps>100", False), ("output_tps>=100", True), ("kl<=0.01", True), ("kl<0.01", False)]
)
def test_a_limit_at_its_bound(limit, kept):
    assert bool(ranked(candidate(throughput=100, kl=0.01), goal=Goal(limits=(parse_limit(limit),)))) is kept


def test_an_unknown_quality_rejects_and_says_why():
    assert because(candidate(kl=None), "kl<0.1") == ("kl<0.1: not known (its quality was not measured)",)


def test_an_unknown_tail_rejects_with_the_samples_that_it_needs():
    assert because(candidate(), "ttft_p99<1s") == ("ttft_p99<1s: not known (64 samples, p99 needs 299)",)


def test_an_unknown_memory_rejects_and_says_why():
    assert "does not tell" in because(candidate(memory=None), "peak_rss_bytes<1GiB")[0]


def test_a_tail_full_of_failures_rejects_and_says_why():
    one = candidate(figures={"ttft_s": distribution(0.1) | {"p95": None, "n": 64, "missing": 10}})
    assert "too many requests failed" in because(one, "ttft_p95<1s")[0]


def test_an_invalid_run_is_rejected_with_its_reason():
    doubt = Doubt(code="errors", severity="invalid", message="9 of 64 requests failed", remedy="r")
    assert because(candidate(verdict=Verdict.of((doubt,)))) == ("its run is invalid: 9 of 64 requests failed",)


def test_a_suspect_run_is_ranked_with_its_doubt():
    doubt = Doubt(code="x", severity="suspect", message="p95 is not printed", remedy="more requests")
    (found,) = ranked(candidate(verdict=Verdict.of((doubt,))))
    assert "doubt: p95 is not printed (more requests)" in found.reasons


def test_rejected_ones_neither_rank_nor_dominate():
    best = candidate("best", throughput=1000, latency_s=0.1, memory=1, kl=0.5)
    found = recommend([best, FAST], make_goal([]))
    assert (names(found.ranked), names(found.rejected)) == (["fast"], ["best"])
    assert found.ranked[0].on_front


def test_reasons_name_the_figure_its_interval_and_its_ratio_to_the_base():
    found = ranked(candidate("nf4", throughput=200, spread=0.1), candidate("bf16", throughput=100, latency_s=0.5))
    assert found[0].reasons[0] == "throughput 200 tok/s [150 tok/s, 250 tok/s], 2.00× bf16 on hf"
    assert found[0].reasons[1] == "at 4 users: the one load measured"


def test_reasons_name_the_limits_that_are_kept():
    (found,) = ranked(candidate(latency_s=1.0), goal=Goal(limits=(parse_limit("ttft_p95<500ms"),)))
    assert "keeps ttft_p95<500ms (100.0 ms)" in found.reasons


def test_the_best_is_called_best_in_what_it_is_best_in():
    found = ranked(FAST, QUICK)
    assert any(r == "best of all in throughput and memory and closeness to the base" for r in found[0].reasons)
    assert any("best of all in request latency" in r for r in found[1].reasons)


def test_nothing_is_best_in_what_nobody_knows():
    found = ranked(candidate("a", 200, 2.0, memory=None), candidate("b", 100, 1.0, memory=None))
    assert not any("memory" in reason for row in found for reason in row.reasons)


def test_an_unknown_objective_comes_last():
    found = ranked(candidate("unknown", memory=None, latency_s=0.1), SMALL, goal=Goal(optimize="memory"))
    assert names(found) == ["small", "unknown"]


def test_a_proof_without_its_interval_is_told_without_it():
    (one,) = ranked(candidate(quality=QUALITY | {"kl_mean_interval": None}))
    assert "KL to the base 0.0100, 97.0% of top tokens unchanged" in one.reasons
