import pytest

from llmopt.core.domain import Limit
from llmopt.core.errors import UsageError
from llmopt.recommend.constraints import DEFAULT_MAX_KL, make_goal, on_memory, parse_limit


@pytest.mark.parametrize(
    ("text", "metric", "statistic", "comparison", "bound"),
    [
        ("ttft_p95<500ms", "ttft", "p95", "<", 0.5),
        (" tps_p50 >= 20 ", "tps", "p50", ">=", 20),
        ("peak_rss_bytes<=2GiB", "peak_rss_bytes", None, "<=", 2**31),
        ("error_rate<1%", "error_rate", None, "<", 0.01),
        ("kl_p99<0.5", "kl_p99", None, "<", 0.5),
        ("top1>95%", "top1", None, ">", 0.95),
    ],
)
def test_limits_as_people_write_them(text, metric, statistic, comparison, bound):
    shown = text.replace(" ", "")
    expected = Limit(metric=metric, statistic=statistic, comparison=comparison, bound=pytest.approx(bound), text=shown)
    assert parse_limit(text) == expected


@pytest.mark.parametrize("text", ["", "ttft_p95", "ttft_p95=5ms", "<5ms", "ttft_p95<", "TTFT_P95<5ms", "a b<5ms"])
def test_what_is_no_constraint_is_refused(text):
    with pytest.raises(UsageError, match="is no constraint") as caught:
        parse_limit(text)
    assert "ttft_p95<500ms" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "turned"),
    [
        ("ttft_p95>500ms", "ttft_p95<500ms"),
        ("tps_p50<=20", "tps_p50>=20"),
        ("kl>0.1", "kl<0.1"),
        ("top1<95%", "top1>95%"),
    ],
)
def test_a_limit_in_the_wrong_direction_is_turned_in_the_hint(text, turned):
    with pytest.raises(UsageError, match="would reject the better") as caught:
        parse_limit(text)
    assert caught.value.hint == turned
    parse_limit(turned)


def test_a_latency_needs_its_unit():
    with pytest.raises(UsageError, match="needs a unit"):
        parse_limit("ttft_p95<500")


def test_an_unknown_metric_names_the_nearest():
    with pytest.raises(UsageError, match="unknown metric 'ttf_p95'") as caught:
        parse_limit("ttf_p95<500ms")
    assert "ttft_p95" in caught.value.hint


def test_a_distribution_needs_its_statistic():
    with pytest.raises(UsageError, match="distribution"):
        parse_limit("ttft<500ms")


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
