from dataclasses import replace

import pytest

from llmopt.bench.verdict import Evidence, judge
from llmopt.core.domain import Workload
from unit.make import closed_loop, failed, ns, open_loop, trace

GOOD = closed_loop(64, 4)


def verdict(traces=GOOD, endpoint="completions", **fields):
    workload = Workload(concurrency=4, requests=len(traces), endpoint=endpoint)
    return judge(Evidence(**{"traces": traces, "workload": workload, "lateness_s": 0.001} | fields))


def codes(*arguments, **options):
    return [d.code for d in verdict(*arguments, **options).reasons]


def test_a_perfect_run_is_valid():
    assert (verdict().status, codes()) == ("valid", [])


def test_every_doubt_has_words_and_a_remedy():
    bad = [failed()] * 5
    found = verdict(bad, lateness_s=1.0, foreign_gpu_processes=True, server_survived=False).reasons
    assert len(found) >= 5
    assert all(d.message and d.remedy for d in found)


def test_one_failure_in_a_hundred_is_borne():
    assert codes([*closed_loop(99, 3), failed()]) == []


def test_more_failures_make_a_run_invalid():
    found = verdict([*closed_loop(98, 2), failed(), failed()])
    assert found.status == "invalid"
    assert "2 of 100 requests failed" in found.reasons[0].message
    assert "refused: connection refused" in found.reasons[0].message


def test_a_server_that_died_makes_a_run_invalid():
    assert verdict(server_survived=False).status == "invalid"


def test_a_server_whose_counters_began_anew_makes_a_run_invalid():
    found = verdict(server={"restarted": True})
    assert (found.status, [d.code for d in found.reasons]) == ("invalid", ["server_restarted"])
    assert "counters began anew" in found.reasons[0].message


def test_fifty_eight_requests_are_too_few():
    assert codes(closed_loop(58, 2)) == ["too_few_samples"]
    assert codes(closed_loop(59, 1)) == []


def test_no_steady_window():
    traces = [trace(n + 0.5, n + 1.0, planned_s=n, index=n) for n in range(60)]
    assert codes([replace(t, planned_ns=0, sent_ns=0) for t in traces][::-1]) == ["never_steady"]
    assert "no_steady_window" in codes(closed_loop(60, 20), workload=Workload(concurrency=20))


def test_a_slow_first_quarter_is_the_warm_up():
    slow = [replace(t, planned_ns=t.planned_ns - ns(5.0), sent_ns=t.sent_ns) for t in GOOD[:16]]
    assert codes([*slow, *GOOD[16:]]) == ["warm_up"]


def test_answers_that_end_early():
    short = [replace(t, requested_output_tokens=32, finish_reason="stop") for t in GOOD]
    found = verdict(short)
    assert [d.code for d in found.reasons] == ["output_length"]
    assert "64 of 64" in found.reasons[0].message
    assert "64 ended by themselves" in found.reasons[0].message


def test_answers_that_are_longer_than_asked():
    assert codes([replace(t, requested_output_tokens=5) for t in GOOD]) == ["output_length"]


def test_prompts_of_another_length_for_the_server():
    off = [replace(t, prompt_tokens=14) for t in GOOD]
    assert codes(off) == ["token_counts"]
    assert "by up to 4 tokens" in verdict(off).reasons[0].message


def test_one_begin_of_sequence_token_is_no_disagreement():
    assert codes([replace(t, prompt_tokens=11) for t in GOOD]) == []


def test_a_chat_template_may_add_tokens():
    assert codes([replace(t, prompt_tokens=40) for t in GOOD], endpoint="chat") == []


def test_a_server_that_counts_nothing():
    assert codes([replace(t, output_tokens=None) for t in GOOD]) == ["token_counts_unknown"]


def test_answers_in_one_chunk_are_not_streamed():
    whole = [replace(t, chunks_ns=t.chunks_ns[-1:], chunk_tokens=()) for t in GOOD]
    assert codes(whole) == ["not_streamed"]


def test_short_answers_may_come_in_one_chunk():
    one = [trace(t.planned_ns / 1e9 + 0.1, planned_s=t.planned_ns / 1e9, tokens=4, index=t.index) for t in GOOD]
    assert "not_streamed" not in codes(one)


def test_prompt_tokens_from_a_cache():
    assert codes([replace(t, cached_tokens=1) for t in GOOD]) == ["prefix_cache"]
    assert codes([replace(t, cached_tokens=0) for t in GOOD]) == []


@pytest.mark.parametrize(("late_s", "found"), [(0.009, []), (0.011, ["client_saturated"])])
def test_a_late_client_is_judged_against_the_latency_that_it_measured(late_s, found):
    assert codes(lateness_s=late_s) == found


@pytest.mark.parametrize(("first_s", "bound_s"), [(0.02, 0.010), (0.4, 0.040)])
def test_a_client_behind_the_kernel_is_judged_in_the_same_way(first_s, bound_s):
    traces = closed_loop(64, 4, first_s=first_s)
    assert codes(traces, lag_s=bound_s * 0.95) == []
    (doubt,) = verdict(traces, lag_s=bound_s * 1.05).reasons
    assert (doubt.code, "behind the kernel" in doubt.message) == ("client_saturated", True)


@pytest.mark.parametrize(("share", "found"), [(0.009, []), (0.011, ["client_saturated"])])
def test_a_client_that_waited_for_a_processor(share, found):
    assert codes(waited_share=share) == found


@pytest.mark.parametrize(
    ("fields", "more"),
    [({"lateness_s": 0.5}, True), ({}, False), ({"lateness_s": 0.5}, False), ({"lag_s": 0.5}, False)],
)
def test_who_waited_for_a_processor_is_not_told_to_start_more_processes(fields, more):
    (doubt,) = verdict(waited_share=0.0 if more else 0.5, **fields).reasons
    assert ("--workers" in doubt.remedy, "--rtprio" in doubt.remedy) == (more, not more)


def test_a_queue_that_grows_as_long_as_the_load_lasts():
    growing = [trace(n * 0.1 + 0.5 + n * 0.1, planned_s=n * 0.1, index=n) for n in range(200)]
    workload = Workload(load="open", rate=10.0)
    (doubt,) = [d for d in verdict(growing, workload=workload).reasons if d.code == "never_steady"]
    assert "never settled" in doubt.message
    assert "--rate" in doubt.remedy


def test_a_ramp_has_no_steady_window_and_needs_none():
    assert not {"no_steady_window", "never_steady"} & set(codes(workload=Workload(load="ramp", rate=1.0, rate_to=2.0)))


def test_a_run_that_ended_before_its_end():
    found = verdict(stopped="interrupted")
    assert [d.code for d in found.reasons] == ["ended_early"]
    assert "interrupted" in found.reasons[0].message


def test_a_run_that_ended_before_its_interval_was_narrow():
    workload = Workload(until="ttft_p99±5%")
    assert codes(until_reached=False, workload=workload) == ["until_not_reached"]
    assert "ttft_p99±5%" in verdict(until_reached=False, workload=workload).reasons[0].message


@pytest.mark.parametrize(("achieved", "found"), [(99.5, []), (98.0, ["client_saturated"])])
def test_a_client_that_sends_less_than_was_asked(achieved, found):
    assert codes(asked_rate=100.0, achieved_rate=achieved) == found


@pytest.mark.parametrize(("share", "found"), [(None, []), (0.5, []), (0.51, ["client_saturated"])])
def test_a_load_near_what_the_client_can_take(share, found):
    assert codes(ceiling_share=share) == found


def test_a_cap_that_holds_the_load_back_is_not_the_clients_fault():
    capped = Workload(load="open", rate=100.0, max_concurrency=4)
    found = codes(open_loop(64), workload=capped, asked_rate=100.0, achieved_rate=40.0)
    assert found == ["held_back"]
    assert codes(open_loop(64), workload=capped, asked_rate=100.0, achieved_rate=100.0) == []


@pytest.mark.parametrize(("share", "found"), [(0.01, []), (0.02, ["coarse_stamps"])])
def test_reads_that_the_kernel_did_not_stamp(share, found):
    assert codes(user_stamped_share=share) == found


@pytest.mark.parametrize(("share", "found"), [(0.05, []), (0.06, ["machine_noisy"])])
def test_a_host_that_gives_its_time_to_others(share, found):
    assert codes(steal_share=share) == found


def test_heat():
    assert codes(throttled=True) == ["throttled"]


def test_prompts_that_were_sent_twice():
    assert codes(reused_prompts=3) == ["prefix_cache"]
    assert codes(reused_prompts=3, workload=Workload(turns=2)) == []


def test_cache_hits_of_conversations_are_meant():
    hits = [replace(t, cached_tokens=9) for t in GOOD]
    assert codes(hits, workload=Workload(turns=2)) == []


def test_counts_that_are_ours_are_an_estimate():
    assert codes([replace(t, tokens_estimated=True) for t in GOOD]) == ["token_counts_unknown"]


def test_a_server_that_counts_fewer_tokens_than_it_sends():
    assert "token_counts" in codes([replace(t, output_tokens=5, requested_output_tokens=5) for t in GOOD])
    assert verdict([replace(t, output_tokens=5) for t in GOOD]).status == "invalid"


@pytest.mark.parametrize(("asked", "severity"), [(10, "suspect"), (30, "invalid")])
def test_text_that_encodes_to_another_count(asked, severity):
    """Where server and request agree, it is our encoding that is odd; else nobody knows."""
    other = [replace(t, counted_tokens=30, requested_output_tokens=asked) for t in GOOD]
    (doubt,) = [d for d in verdict(other).reasons if d.code == "token_counts"]
    assert doubt.severity == severity


def test_another_process_on_the_gpu():
    assert codes(foreign_gpu_processes=True) == ["shared_gpu"]
