from dataclasses import replace

import pytest

from llmopt.bench.load import Progress
from llmopt.core.domain import Doubt, Verdict, Workload
from llmopt.pipeline.visiting import End, around, at_level, enough, judged, objective, of_rounds
from llmopt.recommend.constraints import make_goal
from unit.make import curve

FAST = 0.05


def test_a_curve_goes_on_while_more_users_give_more():
    assert not enough(curve(u1=(100, FAST), u2=(190, FAST), u4=(300, FAST)), make_goal([]))


def test_one_load_without_gain_may_be_noise():
    assert not enough(curve(u1=(100, FAST), u2=(99, FAST)), make_goal([]))


def test_two_loads_without_gain_are_saturation():
    assert enough(curve(u1=(100, FAST), u2=(99, FAST), u4=(101, FAST)), make_goal([]))


def test_two_loads_that_miss_a_limit_end_the_curve():
    slow = curve(u1=(100, FAST), u2=(190, 0.6), u4=(300, 0.9))
    assert enough(slow, make_goal(["ttft_p95<500ms"]))
    assert not enough(slow, make_goal(["ttft_p95<700ms"]))


def test_the_objective_is_judged_at_the_highest_load_that_keeps_the_limits():
    found = judged(curve(u1=(100, FAST), u2=(190, 0.3), u4=(300, 0.9)), make_goal(["ttft_p95<500ms"]))
    assert (found.value, found.load) == (190, "2 users")


def test_no_single_run_decides_about_a_limit():
    """Three rounds at 2 users, of which one misses: the middle one keeps it."""
    rounds = [
        replace(run, race={"round": n})
        for n, ttft in ((1, 0.4), (2, 0.45), (3, 0.505))
        for run in curve(u2=(190 + n, ttft))
    ]
    found = judged(rounds, make_goal(["ttft_p95<500ms"]))
    assert found.failure == ""
    assert of_rounds(rounds, found.key, make_goal([])) == {1: 191, 2: 192, 3: 193}


def disturbed(run):
    doubt = Doubt(code="shared_gpu", severity="suspect", message="m", remedy="r")
    return replace(run, verdict=Verdict.of((doubt,)))


def test_what_was_measured_again_is_not_told_by_the_disturbed_run():
    first, second = (replace(run, race={"round": n}) for n, tps in ((1, 20), (2, 100)) for run in curve(u2=(tps, FAST)))
    goal = make_goal([])
    assert judged([disturbed(first), second], goal).value == 100
    assert of_rounds([disturbed(first), second], first.case_key, goal) == {2: 100}
    assert of_rounds([disturbed(first)], first.case_key, goal) == {1: 20}


def test_a_limit_that_is_missed_by_little_is_near():
    assert judged(curve(u1=(100, 0.505)), make_goal(["ttft_p95<500ms"])).near
    assert not judged(curve(u1=(100, 0.6)), make_goal(["ttft_p95<500ms"])).near


def test_the_end_of_the_time_ends_a_run_like_an_interrupt():
    left = iter([1.0, 0.0])
    end = End(Workload(), [], lambda: next(left))
    now = Progress(finished=0, failed=0, active=1, waiting=0)
    assert end(now) is False
    with pytest.raises(KeyboardInterrupt):
        end(now)
    assert end.out_of_time


def test_a_limit_that_no_load_keeps_is_named_with_what_was_measured():
    found = judged(curve(u1=(100, 0.6), u2=(190, 0.7)), make_goal(["ttft_p95<500ms"]))
    assert found.value is None
    assert found.failure == "ttft_p95<500ms: measured 600.0 ms at 1 user"


def test_runs_that_are_all_invalid_say_why():
    doubts = (
        Doubt(code="a", severity="suspect", message="few samples", remedy=""),
        Doubt(code="b", severity="invalid", message="all failed", remedy=""),
    )
    runs = [run.__class__(**vars(run) | {"verdict": Verdict.of(doubts)}) for run in curve(u1=(100, FAST))]
    assert judged(runs, make_goal([])).failure == "no valid run: all failed"


def test_cheapest_is_what_gives_the_most_tokens():
    goal = make_goal([], optimize="cost,latency", price_per_hour=2.0)
    assert objective(goal, video=False) == ("output_tps", None, "higher")


def test_memory_is_of_the_gpu_where_there_is_one():
    goal = make_goal([], optimize="memory")
    assert objective(goal, video=True) == ("peak_vram_bytes", None, "lower")
    assert objective(goal, video=False) == ("peak_rss_bytes", None, "lower")


def test_requests_suffice_for_the_percentiles_of_the_limits():
    workload = Workload(requests=64)
    assert at_level(workload, 2, None, make_goal(["ttft_p99<1s"])).requests == 304
    assert at_level(workload, 2, None, make_goal([], optimize="ttft_p99")).requests == 304
    assert at_level(workload, 64, None, make_goal([])).requests == 256
    assert at_level(workload, 64, 40, make_goal([])).requests == 40


def test_later_rounds_go_to_the_load_and_its_neighbours():
    loads = [Workload(concurrency=users) for users in (1, 2, 4, 8)]
    assert [w.concurrency for w in around(loads, 0)] == [1, 2]
    assert [w.concurrency for w in around(loads, 2)] == [2, 4, 8]
