import pytest

from llmopt.core.errors import UsageError
from llmopt.recommend.constraints import DEFAULT_MAX_KL, make_goal, on_memory


def limits(goal):
    return [(limit.metric, limit.bound) for limit in goal.limits]


def test_a_goal_without_words_keeps_close_to_the_base():
    goal = make_goal([])
    assert limits(goal) == [("kl", DEFAULT_MAX_KL)]
    assert goal.optimize == "throughput"


def test_a_goal_holds_every_limit():
    goal = make_goal(["tps_p50>20"], max_memory="2GiB", max_kl=0.05, optimize="latency")
    assert limits(goal) == [("tps", 20), ("peak_rss_bytes", 2**31), ("kl", 0.05)]


def test_memory_is_gpu_memory_where_there_is_a_gpu():
    assert limits(on_memory(make_goal([], max_memory="2GiB"), "peak_vram_bytes"))[0] == ("peak_vram_bytes", 2**31)


def test_a_limit_on_kl_takes_the_place_of_the_default():
    assert limits(make_goal(["kl<0.5"])) == [("kl", 0.5)]


def test_two_limits_on_kl_both_hold():
    assert sorted(limits(make_goal(["kl<0.5"], max_kl=0.01))) == [("kl", 0.01), ("kl", 0.5)]


@pytest.mark.parametrize("max_kl", [-0.1, float("nan"), float("inf")])
def test_a_kl_that_cannot_be_is_refused(max_kl):
    with pytest.raises(UsageError):
        make_goal([], max_kl=max_kl)


def test_a_small_kl_keeps_its_digits():
    assert limits(make_goal([], max_kl=1.25e-7)) == [("kl", 1.25e-7)]
    assert limits(make_goal([], max_kl=0.0123456789)) == [("kl", 0.0123456789)]


def test_memory_needs_its_unit():
    with pytest.raises(UsageError, match="needs a unit"):
        make_goal([], max_memory="2")


def test_an_unknown_objective_names_the_nearest():
    with pytest.raises(UsageError, match="unknown objective 'latenzy'") as caught:
        make_goal([], optimize="latenzy")
    assert "latency" in caught.value.hint
