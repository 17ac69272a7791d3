import pytest

from llmopt.core.errors import UsageError
from unit.gate.imported import read, recording, runs_in


@pytest.fixture
def report():
    return recording("guidellm-v2.json")


def requests(report):
    return report["benchmarks"][0]["requests"]["successful"]


def test_ttft_is_the_first_token_since_the_send(report):
    (run,) = runs_in("guidellm-v2.json")
    told = report["benchmarks"][0]["metrics"]["time_to_first_token_ms"]["successful"]["mean"]
    assert run.metrics["ttft_service_s"]["mean"] == pytest.approx(told / 1e3)


def test_its_tpot_has_the_first_token_in_it_and_ours_has_not(report):
    run = read(report)
    assert run.metrics["tpot_s"]["mean"] < run.figures["time_per_output_token_ms.mean"] / 1e3
    assert run.metrics["tpot_s"]["mean"] == pytest.approx(run.figures["inter_token_latency_ms.mean"] / 1e3, rel=1e-6)


def test_end_to_end_ends_with_the_last_token(report):
    run = read(report)
    assert run.metrics["e2e_service_s"]["mean"] < run.figures["request_latency.mean"]


def test_several_tokens_an_event_leave_tpot_unknown(report):
    requests(report)[0]["info"]["timings"]["token_iterations"] = 4
    run = read(report)
    assert run.metrics["tpot_s"] is None
    assert any("several tokens" in words for words in run.unlike)


def test_rates_are_over_the_whole_run(report):
    told = report["benchmarks"][0]["scheduler_metrics"]
    seconds = told["request_end_time"] - told["request_start_time"]
    run = read(report)
    assert run.metrics["requests_per_s_whole"] == pytest.approx(5 / seconds)
    assert run.metrics["output_tps_whole"] == pytest.approx(60 / seconds)


def test_a_sample_of_the_requests_has_no_percentiles(report):
    requests(report).pop()
    run = read(report)
    assert run.metrics.get("ttft_service_s") is None
    assert any("4 of 5" in words for words in run.unlike)
    assert run.metrics["requests_per_s_whole"] > 0


def test_the_load(report):
    workload = read(report).workload
    assert (workload.concurrency, workload.requests, workload.endpoint) == (2, 5, "chat")
    assert (workload.input_tokens, workload.output_tokens) == (24, 12)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ({"type_": "synchronous"}, ("closed", 1, None)),
        ({"type_": "throughput", "max_concurrency": 512}, ("closed", 512, None)),
        ({"type_": "constant", "rate": 3.0}, ("open", 4, 3.0)),
        ({"type_": "async", "rate": 3.0}, ("open", 4, 3.0)),
        ({"type_": "poisson", "rate": 3.0}, ("open", 4, 3.0)),
    ],
)
def test_strategies(report, strategy, expected):
    report["benchmarks"][0]["config"]["strategy"] = strategy
    workload = read(report).workload
    assert (workload.load, workload.concurrency, workload.rate) == expected


def test_an_unknown_strategy_is_refused(report):
    report["benchmarks"][0]["config"]["strategy"] = {"type_": "incremental"}
    with pytest.raises(UsageError, match="incremental"):
        read(report)


def test_failures_by_their_words(report):
    benchmark = report["benchmarks"][0]
    benchmark["requests"]["errored"] = [{"info": {"error": "ReadTimeout('slow')"}}]
    benchmark["scheduler_metrics"]["requests_made"]["errored"] = 1
    run = read(report)
    assert (run.failed, run.errors) == (1, {"ReadTimeout": 1})
    assert run.metrics["ttft_service_s"]["missing"] == 1
    assert run.metrics["output_tps_whole"] is None


def test_requests_that_were_cut_off_are_said(report):
    report["benchmarks"][0]["scheduler_metrics"]["requests_made"]["incomplete"] = 2
    assert read(report).cut_short


def test_a_report_without_a_benchmark_is_refused(report):
    with pytest.raises(UsageError, match="no benchmark"):
        read(report | {"benchmarks": []})


def test_every_point_of_a_sweep_is_a_run(report):
    from llmopt.gate.imports import reader

    report["benchmarks"] *= 3
    assert len(reader("guidellm").read(report)) == 3


def as_before_versions(report):
    """The shape of 0.3, by its source: other names, and no count of events."""
    benchmark = report["benchmarks"][0]
    names = {
        "request_start": "start_time",
        "first_token_iteration": "first_token_time",
        "last_token_iteration": "last_token_time",
    }
    old = [
        {new: r["info"]["timings"][name] for name, new in names.items()}
        | {n: r[n] for n in ("prompt_tokens", "output_tokens")}
        for r in benchmark["requests"]["successful"]
    ]
    made = benchmark["scheduler_metrics"]["requests_made"]
    return {
        "benchmarks": [
            {
                "args": {"strategy": {"type_": "concurrent", "streams": 2}, "max_number": 5, "max_duration": None},
                "run_stats": {"start_time": benchmark["start_time"], "end_time": benchmark["end_time"], "requests_made": made},
                "worker": {"backend_model": "truth"}, "start_time": benchmark["start_time"],
                "metrics": benchmark["metrics"], "requests": {"successful": old, "errored": [], "incomplete": []},
            }
        ]
    }  # fmt: skip


def test_a_report_of_the_time_before_versions(report):
    old, new = read(as_before_versions(report)), read(report)
    assert old.metrics["ttft_service_s"] == new.metrics["ttft_service_s"]
    assert old.metrics["tpot_s"] is None  # it does not say how many tokens an event brought
    assert (old.model, old.workload.concurrency, old.workload.requests) == ("truth", 2, 5)


def as_version_1(report):
    """By the source of 0.5.3: ``args`` where 2 has ``config``; the same of a request."""
    report["metadata"]["version"] = 1
    del report["config"]
    return report | {"args": {"model": "truth", "data": ["prompt_tokens=24,output_tokens=12"]}}


def test_a_report_of_version_1(report):
    run = read(as_version_1(report))
    assert run.metrics["tpot_s"]["n"] == 5
    assert (run.workload.input_tokens, run.workload.output_tokens) == (24, 12)
