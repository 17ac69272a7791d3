import pytest

from llmopt.core.domain import Doubt, Goal, Verdict
from llmopt.recommend.candidates import comparable
from llmopt.recommend.choosing import choose
from llmopt.recommend.diagnosis import diagnose
from unit.make import MACHINE, WORKLOAD, distribution, metrics, run


def found(*runs, at=None):
    (candidate,) = comparable(runs).candidates
    chosen = choose(candidate, Goal())
    if at is not None:
        import dataclasses

        chosen = dataclasses.replace(chosen, at=at)
    return {d["code"]: d for d in diagnose(chosen)}


def doubted(code):
    return Verdict.of((Doubt(code=code, severity="suspect", message="m", remedy="r"),))


def timed(ttft_s, tpot_s, e2e_s, **more):
    return (
        metrics()
        | {"ttft_s": distribution(ttft_s), "tpot_s": distribution(tpot_s), "e2e_s": distribution(e2e_s)}
        | more
    )


def test_a_request_that_waits_for_its_turn_is_queueing():
    one = found(
        run(metrics=timed(1.0, 0.01, 1.31, server_queue_s=distribution(0.8), server_prefill_s=distribution(0.2)))
    )
    assert one["queueing"]["evidence"]["queue_share_of_ttft"] == pytest.approx(0.8)


def test_queueing_is_seen_in_the_curve_where_the_server_says_nothing():
    runs = [
        run(metrics=timed(s, 0.01, s + 0.31) | {"output_tps": t}, workload=WORKLOAD | {"concurrency": n}, run_id=str(n),
            serve={"backend": "hf", "max_num_seqs": 4})
        for n, s, t in ((1, 0.1, 50.0), (16, 0.9, 300.0))
    ]  # fmt: skip
    one = found(*runs)
    assert one["queueing"]["evidence"]["ttft_growth"] == pytest.approx(9)
    assert "more --max-num-seqs than 4 (there are 16 users)" in one["queueing"]["next"]


def test_a_long_prompt_is_prefill_bound():
    one = found(
        run(metrics=timed(0.9, 0.01, 1.2, server_prefill_s=distribution(0.9), server_queue_s=distribution(0.0)))
    )
    assert set(one) == {"prefill-bound"}


def test_a_long_answer_is_decode_bound():
    assert set(found(run(metrics=timed(0.05, 0.03, 0.98)))) == {"decode-bound"}


def test_sequences_that_slow_each_other_are_told_from_those_that_do_not():
    runs = [
        run(
            metrics=timed(0.05, t, 31 * t + 0.05) | {"output_tps": r},
            workload=WORKLOAD | {"concurrency": n},
            run_id=str(n),
        )
        for n, t, r in ((1, 0.01, 100.0), (8, 0.03, 200.0))
    ]
    assert "fewer sequences at once" in found(*runs)["decode-bound"]["next"]
    assert "more sequences at once" in found(runs[0])["decode-bound"]["next"]


@pytest.mark.parametrize("figures", [{"preemptions": 3}, {"kv_usage_peak": 0.99}])
def test_a_full_cache_is_kv_starved(figures):
    one = found(run(metrics=metrics() | figures))
    assert "kv-starved" in one
    assert {n: v for n, v in one["kv-starved"]["evidence"].items() if n in figures} == figures


def test_a_client_that_could_not_send_is_client_bound():
    one = found(run(verdict=doubted("client_saturated"), client={"ceiling": {"share": 0.8}}))["client-bound"]
    assert one["evidence"]["client_ceiling_share"] == 0.8


def test_what_a_client_bound_run_is_to_try_is_what_its_own_doubt_says():
    """More processes help one that was at its limit, and would wait as the first did where no processor was free."""
    waited = Verdict.of(
        (Doubt(code="client_saturated", severity="suspect", message="m", remedy="a client on its own cores"),)
    )
    one = found(run(verdict=waited, client={"waited_share": 0.05}))["client-bound"]
    assert one["next"].startswith("a client on its own cores")
    assert one["evidence"]["client_waited_share"] == 0.05


def test_runs_that_differ_are_noisy():
    one = found(run(throughput=100, run_id="a"), run(throughput=140, run_id="b"))
    assert "differ by 33%" in one["noisy"]["words"]


def test_memory_that_is_all_taken_is_memory_bound():
    assert "memory-bound" in found(run(metrics=metrics(memory=0.95 * MACHINE.memory_bytes)))


def test_nothing_is_said_where_nothing_is_seen():
    assert found(run(metrics=metrics())) == {}


def test_an_invalid_run_is_not_diagnosed():
    invalid = Verdict.of((Doubt(code="errors", severity="invalid", message="m", remedy="r"),))
    assert found(run(verdict=invalid, metrics=metrics() | {"preemptions": 3})) == {}


def test_an_open_loop_that_falls_behind_is_queueing():
    figures = timed(3.0, 0.01, 3.3) | {"requests_per_s": 4.0}
    one = found(run(metrics=figures, workload=WORKLOAD | {"load": "open", "rate": 8.0}))
    assert "the queue grows" in one["queueing"]["words"]


def test_more_users_than_sequences_are_queueing_and_no_long_prompt():
    figures = timed(0.9, 0.003, 1.0)
    one = found(
        run(metrics=figures, workload=WORKLOAD | {"concurrency": 64}, serve={"backend": "hf", "max_num_seqs": 4})
    )
    assert set(one) == {"queueing"}
    assert "64 users, and 4 sequences" in one["queueing"]["words"]


def test_users_of_whom_none_waits_may_be_prefill_bound():
    figures = timed(0.9, 0.003, 1.0)
    assert set(found(run(metrics=figures, serve={"backend": "hf", "max_num_seqs": 4}))) == {"prefill-bound"}
    assert found(run(metrics=figures)) == {}  # nobody knows how many sequences there are


def reserving(**figures):
    card = 80 * 2**30
    telemetry = {"gpus": [0], "gpu_memory_bytes": [card]}
    figures = {"peak_vram_bytes": 0.92 * card} | figures
    return found(run("bf16", "vllm", metrics=metrics() | figures, telemetry=telemetry))


@pytest.mark.parametrize("told", [{}, {"kv_usage_peak": 0.04}, {"kv_cache_bytes": 60 * 2**30, "kv_usage_peak": 0.04}])
def test_memory_that_an_engine_reserves_and_does_not_use_binds_nothing(told):
    assert reserving(**told) == {}


def test_a_reserved_cache_that_is_used_is_memory_that_is_needed():
    assert "memory-bound" in reserving(kv_cache_bytes=10 * 2**30, kv_usage_peak=0.9)


def test_gpu_memory_that_is_all_taken_is_memory_bound():
    card = 80 * 2**30
    telemetry = {"gpus": [0], "gpu_memory_bytes": [card]}
    one = found(run(metrics=metrics() | {"peak_vram_bytes": 0.95 * card}, telemetry=telemetry))
    assert one["memory-bound"]["evidence"]["memory_bytes"] == card
    assert found(run(metrics=metrics() | {"peak_vram_bytes": 0.5 * card}, telemetry=telemetry)) == {}
