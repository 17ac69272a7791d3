"""The shape is by the source of 0.5.23: SGLang needs a GPU's libraries to be imported."""

import pytest

from unit.gate.imported import read

GAPS = [0.005, 0.006, 0.004]


def line(**changes):
    """A line of four requests of four tokens, one token an event."""
    times = {"ttft": 20.0, "tpot": 5.2, "itl": 5.0, "e2e_latency": 36.0}
    figures = {
        f"{s}_{name}_ms": value for name, value in times.items() for s in ("mean", "median", "p90", "p95", "p99")
    }
    return {
        "tag": None, "backend": "sglang-oai", "dataset_name": "random", "request_rate": float("inf"), "max_concurrency": 2,
        "random_input_len": 8, "random_output_len": 4, "random_range_ratio": 1.0,
        "server_info": {"model_path": "/models/truth", "version": "0.5.23"}, "duration": 0.08, "completed": 4,
        "total_input_tokens": 32, "total_output_tokens": 16, "request_throughput": 50.0, "input_throughput": 400.0,
        "output_throughput": 200.0, "total_throughput": 600.0, "concurrency": 1.8,
    } | figures | changes  # fmt: skip


def details(**changes):
    return {"ttfts": [0.02] * 4, "itls": [GAPS] * 4, "output_lens": [4] * 4, "errors": [""] * 4} | changes


def test_without_details_ttft_alone_is_ours():
    run = read(line())
    assert run.metrics["ttft_service_s"]["p50"] == pytest.approx(0.02)
    assert not {"tpot_s", "e2e_service_s"} & run.metrics.keys()
    assert run.figures["mean_tpot_ms"] == 5.2


def test_with_details_latency_ends_with_the_last_token():
    run = read(line(**details()))
    assert run.metrics["e2e_service_s"]["mean"] == pytest.approx(0.035)
    assert run.metrics["tpot_s"]["mean"] == pytest.approx(0.005)


def test_events_of_several_tokens_leave_tpot_unknown():
    assert "tpot_s" not in read(line(**details(itls=[[0.01]] * 4))).metrics


def test_the_native_client_has_a_gap_for_each_token():
    native = line(backend="sglang", **details(itls=[[0.005, 0.005]] * 4))
    assert read(native).metrics["tpot_s"]["mean"] == pytest.approx(0.005)


def test_failures_are_known_with_details():
    failed = details(errors=["", "", "", "refused"], output_lens=[4, 4, 4, 0], itls=[GAPS] * 3 + [[]])
    run = read(line(completed=3, **failed))
    assert (run.ok, run.failed) == (3, 1)
    assert run.metrics["ttft_service_s"]["missing"] == 1


def test_the_server_names_model_and_engine():
    run = read(line())
    assert (run.model, run.engine, run.engine_version) == ("truth", "sglang", "0.5.23")


def test_an_infinite_rate_is_a_closed_loop():
    assert (read(line()).workload.load, read(line()).workload.concurrency) == ("closed", 2)


def test_a_rate_is_an_open_loop():
    workload = read(line(request_rate=3.0, max_concurrency=None)).workload
    assert (workload.load, workload.rate, workload.arrival) == ("open", 3.0, "poisson")


def test_a_trace():
    assert read(line(request_rate="trace")).workload.load == "trace"


def test_lengths_that_were_drawn_are_those_that_came():
    workload = read(line(random_range_ratio=0.0, total_input_tokens=20)).workload
    assert workload.input_tokens == 5
