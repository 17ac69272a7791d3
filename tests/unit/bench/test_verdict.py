from dataclasses import replace

import pytest

from llmopt.bench.verdict import Evidence, judge
from llmopt.core.domain import Workload
from unit.make import closed_loop, failed, ns, trace

GOOD = closed_loop(64, 4)


def verdict(traces=GOOD, endpoint="completions", **fields):
    workload = Workload(concurrency=4, requests=len(traces), endpoint=endpoint)
    return judge(Evidence(**{"traces": traces, "workload": workload, "loop_lag_p99_s": 0.001} | fields))


def codes(*arguments, **options):
    return [d.code for d in verdict(*arguments, **options).reasons]


def test_a_perfect_run_is_valid():
    assert (verdict().status, codes()) == ("valid", [])


def test_every_doubt_has_words_and_a_remedy():
    bad = [failed()] * 5
    found = verdict(bad, loop_lag_p99_s=1.0, foreign_gpu_processes=True, server_survived=False).reasons
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


def test_fifty_eight_requests_are_too_few():
    assert codes(closed_loop(58, 2)) == ["too_few_samples"]
    assert codes(closed_loop(59, 1)) == []


def test_no_steady_window():
    traces = [trace(n + 0.5, n + 1.0, planned_s=n, index=n) for n in range(60)]
    assert codes([replace(t, planned_ns=0, sent_ns=0) for t in traces][::-1]) == ["no_steady_window", "warm_up"]
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


@pytest.mark.parametrize(("lag_s", "found"), [(0.009, []), (0.011, ["client_saturated"])])
def test_a_late_client_is_judged_against_the_latency_that_it_measured(lag_s, found):
    assert codes(loop_lag_p99_s=lag_s) == found


def test_another_process_on_the_gpu():
    assert codes(foreign_gpu_processes=True) == ["shared_gpu"]
