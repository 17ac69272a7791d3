import pytest

from llmopt.core.domain import Doubt, Goal, Verdict
from llmopt.core.limits import parse_limit
from llmopt.recommend.candidates import comparable
from llmopt.recommend.choosing import choose
from llmopt.recommend.rank import recommend
from unit.make import WORKLOAD, curve, distribution, metrics, run

RISING = {"u1": (50, 0.05), "u4": (150, 0.1), "u8": (200, 0.2), "u16": (204, 0.6)}


def goal(*limits):
    return Goal(limits=tuple(parse_limit(text) for text in limits))


def chosen(runs, *limits):
    (candidate,) = comparable(runs).candidates
    return choose(candidate, goal(*limits))


def sweep(**rates):
    """Runs of an open loop: ``r4=(completed per second, ttft_s)``."""
    made = []
    for name, (completed, ttft_s) in rates.items():
        rate = float(name[1:])
        figures = metrics(32 * completed) | {"requests_per_s": completed, "ttft_s": distribution(ttft_s)}
        made.append(run(metrics=figures, workload=WORKLOAD | {"load": "open", "rate": rate}, run_id=name))
    return made


def test_the_highest_load_that_keeps_every_limit_is_the_point():
    found = chosen(curve(**RISING), "ttft_p95<250ms")
    assert found.point.load == "8 users"
    assert found.value("output_tps") == 200
    assert "the highest of 4 loads measured that keeps every limit" in found.why


def test_all_limits_are_judged_at_one_load():
    """TTFT holds up to 4 users and throughput from 8 on: at no load do both."""
    (rejected,) = recommend(comparable(curve(**RISING)).candidates, goal("ttft_p95<150ms", "output_tps>=200")).rejected
    assert any("at no load do all" in reason for reason in rejected.because)


def test_a_load_whose_requests_failed_is_no_point():
    failed = Verdict.of((Doubt(code="errors", severity="invalid", message="60 of 64 requests failed", remedy="r"),))
    over = run("a", metrics=metrics(900), verdict=failed, workload=WORKLOAD | {"concurrency": 32})
    assert chosen([*curve(**RISING), over], "ttft_p95<700ms").point.load == "16 users"


def test_when_every_request_failed_no_slo_is_kept():
    nothing = metrics(0.0) | {
        "ttft_s": distribution(0.1) | {"p50": None, "p95": None, "missing": 64},
        "error_rate": 1.0,
    }
    (rejected,) = recommend(comparable([run(metrics=nothing)]).candidates, goal("ttft_p95<700ms")).rejected
    assert rejected.because[0] == "ttft_p95<700ms: not known (too many requests failed)"


def test_what_was_not_measured_never_passes():
    unknown = metrics() | {"ttft_s": None}
    assert not recommend(comparable([run(metrics=unknown)]).candidates, goal("ttft_p95<700ms")).ranked


def test_a_lower_load_that_misses_is_a_doubt():
    found = chosen(curve(**RISING | {"u4": (150, 0.9)}), "ttft_p95<250ms")
    assert found.point.load == "8 users"
    assert "doubt: it does not at 4 users" in found.why


def test_the_highest_load_measured_may_not_be_the_highest():
    assert "it may keep them at more" in chosen(curve(**RISING), "ttft_p95<1s").why


def test_past_saturation_no_slo_is_kept():
    found = chosen(sweep(r2=(2, 0.1), r4=(4, 0.1), r8=(5, 0.1)), "ttft_p95<250ms")
    assert found.point.load == "4 requests/s"


def test_without_slos_it_is_the_highest_throughput_before_saturation():
    assert chosen(sweep(r2=(2, 0.1), r4=(4, 0.1), r8=(5, 0.1))).point.load == "4 requests/s"


def test_without_slos_more_users_that_only_wait_are_left_out():
    found = chosen(curve(**RISING))
    assert found.point.load == "8 users"
    assert "more users only wait longer" in found.why


@pytest.mark.parametrize("name", ["latency", "ttft_p95", "latency,throughput"])
def test_for_latency_it_is_the_lowest_load_which_all_have(name):
    (candidate,) = comparable(curve(**RISING)).candidates
    assert choose(candidate, Goal(optimize=name)).point.load == "1 user"


def test_where_every_rate_is_past_saturation_that_is_said():
    assert "past saturation" in chosen(sweep(r8=(5, 0.1), r16=(5, 0.1))).why


def test_memory_is_the_peak_of_all_loads_up_to_the_point():
    runs = [
        run(metrics=metrics(100.0 * n, memory=m), workload=WORKLOAD | {"concurrency": n}, run_id=str(n))
        for n, m in ((1, 5.0), (2, 9.0), (3, 7.0), (4, 99.0))
    ]
    found = chosen(runs, "ttft_p95<1s")
    assert found.value("peak_rss_bytes") == 99.0
    (candidate,) = comparable(runs).candidates
    assert candidate.value_at(2, "peak_rss_bytes") == 9.0


@pytest.mark.parametrize("name", ["ttft_p50", "e2e_p95", "tpot_p99", "requests_per_s"])
def test_any_metric_can_be_the_objective(name):
    assert recommend(comparable(curve(**RISING)).candidates, Goal(optimize=name)).ranked


def test_a_load_that_a_cap_held_back_is_past_saturation():
    held = Verdict.of((Doubt(code="held_back", severity="suspect", message="m", remedy="r"),))
    runs = [
        run(metrics=metrics(32 * sent) | {"requests_per_s": sent}, run_id=str(rate), client={"achieved_rate": sent},
            workload=WORKLOAD | {"load": "open", "rate": rate, "max_concurrency": 8},
            verdict=held if sent < rate else Verdict(status="valid"))
        for rate, sent in ((10.0, 10.0), (20.0, 20.0), (100.0, 20.0))
    ]  # fmt: skip
    found = chosen(runs, "ttft_p95<700ms")
    assert found.point.load == "20 requests/s"
    assert [p.saturated for p in found.points] == [False, False, True]


def test_where_quality_is_what_breaks_it_is_shown_at_the_highest_load_that_its_speed_keeps():
    found = chosen(curve(**RISING), "ttft_p95<250ms", "kl<0.001")
    assert found.point.load == "8 users"
    assert found.why.startswith("no load keeps every limit")


def rejected_for(limit, *runs):
    (rejected,) = recommend(comparable(runs).candidates, goal(limit)).rejected
    return rejected.because[0]


def test_a_run_of_few_samples_is_why_a_tail_is_not_known():
    runs = [
        run(metrics=metrics() | {"ttft_s": distribution(0.1, n) | ({"p95": None} if n < 59 else {})}, run_id=f"r{n}{k}")
        for k, n in enumerate((64, 64, 10))
    ]
    assert rejected_for("ttft_p95<700ms", *runs) == (
        "ttft_p95<700ms: not known (10 samples in one of its runs, p95 needs 59)"
    )


def test_weights_that_are_not_known_are_no_quality_that_was_not_measured():
    assert "does not tell" in rejected_for("weights_bytes<1GiB", run())
