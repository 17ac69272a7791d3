import pytest

from llmopt.core.errors import UsageError
from unit.gate.imported import read, recording, runs_in


@pytest.fixture
def export():
    return recording("aiperf.json")


def of_predecessor(export):
    """genai-perf's shape, by the source of 0.0.16: no version, no counts, other options."""
    names = ("request_throughput", "request_latency", "time_to_first_token", "inter_token_latency", "output_token_throughput",
             "output_sequence_length", "input_sequence_length")  # fmt: skip
    kept = {n: {k: v for k, v in export[n].items() if k not in ("count", "sum")} for n in names}
    config = {
        "model_names": ["truth"], "endpoint": {"type": "chat"}, "perf_analyzer": {"stimulus": {"concurrency": 4}},
        "input": {"synthetic_tokens": {"mean": 24, "stddev": 0}, "output_tokens": {"mean": 12}},
    }  # fmt: skip
    return kept | {"request_count": {"unit": "count", "avg": 24.0}, "input_config": config}


def test_ttft_and_latency_are_since_the_send(export):
    (run,) = runs_in("aiperf.json")
    assert run.metrics["ttft_service_s"]["p50"] == pytest.approx(export["time_to_first_token"]["p50"] / 1e3)
    assert run.metrics["e2e_service_s"]["max"] == pytest.approx(export["request_latency"]["max"] / 1e3)


def test_as_many_gaps_as_tokens_make_its_itl_our_tpot(export):
    assert read(export).metrics["tpot_s"]["mean"] == pytest.approx(export["inter_token_latency"]["avg"] / 1e3)


def test_fewer_gaps_leave_itl_its_own(export):
    export["inter_chunk_latency"]["count"] = 130
    run = read(export)
    assert "tpot_s" not in run.metrics
    assert run.figures["inter_token_latency.avg"] == export["inter_token_latency"]["avg"]


def test_the_load(export):
    workload = read(export).workload
    assert (workload.concurrency, workload.requests, workload.endpoint) == (4, 24, "completions")
    assert (workload.input_tokens, workload.output_tokens) == (24, 12)


def test_an_open_loop(export):
    export["input_config"]["phases"] = [
        {"kind": "warmup", "rate": 1.0},
        {"kind": "profiling", "type": "poisson", "rate": 7.0},
    ]
    workload = read(export).workload
    assert (workload.load, workload.rate, workload.arrival) == ("open", 7.0, "poisson")


def test_failures(export):
    export |= {
        "error_request_count": {"unit": "requests", "avg": 6.0},
        "error_summary": [{"error_details": {"type": "ServerDisconnectedError"}, "count": 6}],
    }
    run = read(export)
    assert (run.ok, run.failed, run.errors) == (24, 6, {"ServerDisconnectedError": 6})
    assert run.metrics["ttft_service_s"]["p50"] is None
    assert run.metrics["output_tps_whole"] is None


def test_units_are_read(export):
    export["time_to_first_token"]["unit"] = "us"
    assert read(export).metrics["ttft_service_s"]["p50"] == pytest.approx(export["time_to_first_token"]["p50"] / 1e6)


def test_an_unknown_unit_is_refused(export):
    export["time_to_first_token"]["unit"] = "furlongs"
    with pytest.raises(UsageError, match="furlongs"):
        read(export)


def test_a_run_without_a_load_is_refused(export):
    export["input_config"]["phases"] = []
    with pytest.raises(UsageError, match="load"):
        read(export)


def test_gpus_that_it_watched_are_the_machine(export):
    export["telemetry_data"]["endpoints"] = {"a": {"gpus": {"0": {"gpu_name": "NVIDIA H100"}}}}
    assert read(export).machine == ("gpu_info NVIDIA H100",)


def test_a_cancelled_run_says_so(export):
    assert read(export | {"was_cancelled": True}).cut_short


def test_the_predecessor_never_tells_how_many_tokens_came_first(export):
    run = read(of_predecessor(export))
    assert run.title == "genai-perf"
    assert "tpot_s" not in run.metrics
    assert run.metrics["ttft_service_s"]["p50"] == pytest.approx(export["time_to_first_token"]["p50"] / 1e3)
    assert (run.model, run.workload.concurrency, run.workload.input_tokens) == ("truth", 4, 24)
    assert run.output_tokens == 288
