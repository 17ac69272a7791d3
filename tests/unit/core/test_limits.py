import pytest

from llmopt.core.domain import Limit
from llmopt.core.errors import UsageError
from llmopt.core.limits import meets, parse_limit, parse_slo, parse_until
from llmopt.core.metric_table import name_of
from llmopt.core.metrics import METRICS, parse_metric


@pytest.mark.parametrize(
    ("text", "metric", "statistic", "comparison", "bound"),
    [
        ("ttft_p95<500ms", "ttft", "p95", "<", 0.5),
        (" tps_p50 >= 20 ", "tps", "p50", ">=", 20),
        ("peak_rss_bytes<=2GiB", "peak_rss_bytes", None, "<=", 2**31),
        ("error_rate<1%", "error_rate", None, "<", 0.01),
        ("kl_p99<0.5", "kl_p99", None, "<", 0.5),
        ("top1>95%", "top1", None, ">", 0.95),
        ("task_score_mmlu>=0.6", "task_score", "mmlu", ">=", 0.6),
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


def test_a_distribution_may_be_bare_where_single_requests_are_judged():
    found = parse_limit("ttft<500ms", bare_distribution=True)
    assert (found.metric, found.statistic, found.bound) == ("ttft", None, 0.5)


@pytest.mark.parametrize(
    ("text", "metric", "bound"),
    [("ttft<500ms", "ttft", 0.5), ("ttft_p95<500ms", "ttft", 0.5), ("tpot<50ms", "tpot", 0.05), ("e2e<2s", "e2e", 2), ("tps>20", "tps", 20)],
)  # fmt: skip
def test_an_slo_is_of_one_request(text, metric, bound):
    found = parse_slo(text)
    assert (found.metric, found.statistic, found.bound) == (metric, None, pytest.approx(bound))


@pytest.mark.parametrize("text", ["output_tps>5", "itl_p95<50ms", "icl<50ms", "kl<0.1"])
def test_an_slo_of_what_a_request_does_not_have_is_refused(text):
    with pytest.raises(UsageError, match="not a metric of one request") as caught:
        parse_slo(text)
    assert "ttft" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "met"),
    [("ttft<1s", (True, False, False)), ("ttft<=1s", (True, True, False)), ("tps>1", (False, False, True)), ("tps>=1", (False, True, True))],
)  # fmt: skip
def test_a_limit_is_met_on_its_side(text, met):
    assert tuple(meets(parse_slo(text), value) for value in (0.5, 1.0, 2.0)) == met


@pytest.mark.parametrize("text", ["ttft_p99±5%", "ttft_p99+-5%", " ttft_p99 +/- 5.0 % "])
def test_until_as_people_write_it(text):
    assert parse_until(text) == (METRICS["ttft"], "p99", pytest.approx(0.05))


def test_until_of_a_rate_needs_no_statistic():
    assert parse_until("output_tps±2%") == (METRICS["output_tps"], None, pytest.approx(0.02))


@pytest.mark.parametrize("text", ["", "ttft_p99", "ttft_p99<5%", "ttft_p99±5", "±5%", "ttft_p99±%", "ttft_p99±5ms"])
def test_what_is_no_stopping_rule_is_refused(text):
    with pytest.raises(UsageError, match="is no stopping rule") as caught:
        parse_until(text)
    assert "ttft_p99±5%" in caught.value.hint


@pytest.mark.parametrize("name", ["ttft_max", "icl_p95", "error_rate", "peak_rss_bytes"])
def test_until_needs_an_interval_within_the_run(name):
    with pytest.raises(UsageError, match="no interval") as caught:
        parse_until(f"{name}±5%")
    assert "p99" in caught.value.hint


@pytest.mark.parametrize("share", ["0%", "100%"])
def test_until_needs_a_width_that_can_be(share):
    with pytest.raises(UsageError, match="out of range"):
        parse_until(f"ttft_p99±{share}")


def test_until_of_a_distribution_needs_its_statistic():
    with pytest.raises(UsageError, match="distribution"):
        parse_until("ttft±5%")


def test_a_score_without_its_task_is_refused():
    with pytest.raises(UsageError, match="is the score of a task") as caught:
        parse_limit("task_score>0.5")
    assert "mmlu" in caught.value.hint


@pytest.mark.parametrize(("metric", "statistic"), [("ttft", "p95"), ("kl", None), ("task_score", "lambada_openai/acc")])
def test_the_name_of_a_number_is_read_back(metric, statistic):
    assert parse_metric(name_of(metric, statistic)) == (METRICS[metric], statistic)
