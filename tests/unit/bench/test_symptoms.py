"""What is told of a server from a run's timelines: vLLM's own, recorded here on two cores, and made ones."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from llmopt.bench.symptoms import Knobs, kv_growth, prefill_stalls, rank_correlation, symptoms
from llmopt.core.domain import RequestTrace
from llmopt.core.store import load_series, load_traces

RECORDINGS = Path(__file__).parents[2] / "recordings"
MS = 1_000_000


def recorded(name):
    """vLLM 0.32 (CPU), the bundled model, 6 users, 900 tokens in, 64 out: --[no-]enable-chunked-prefill."""
    return load_traces(RECORDINGS / f"vllm-{name}-prefill.json")


def trace(index, *, start_ms=0, gap_ms=10, chunks=50):
    stamps = tuple((start_ms + n * gap_ms) * MS for n in range(chunks))
    return RequestTrace(
        index=index, planned_ns=0, requested_output_tokens=chunks, prompt_tokens_asked=1, sent_ns=0, chunks_ns=stamps
    )


def series(usage, running=4):
    return {
        "t_ns": [n * 250 * MS for n in range(len(usage))],
        "kv_cache_usage": usage,
        "running": [running] * len(usage),
    }


def test_streams_that_stand_still_behind_whole_prompts_are_found_out():
    found = prefill_stalls(recorded("whole"))
    assert found.code == "prefill_stalls"
    assert "stand still for 821 ms" in found.cause


@pytest.mark.parametrize(
    ("options", "asked", "remedy"),
    [
        ({"enable_chunked_prefill", "max_num_batched_tokens"}, {}, "--enable-chunked-prefill, or a smaller --max-num"),
        (
            {"enable_chunked_prefill", "max_num_batched_tokens"},
            {"enable_chunked_prefill": True, "max_num_batched_tokens": 8192},
            "a smaller --max-num-batched-tokens than 8192: prompts",
        ),
        ({"max_num_batched_tokens"}, {}, "a smaller --max-num-batched-tokens: prompts"),
        ({"threads"}, {}, "shorter prompts, or an engine that cuts them"),
        (None, {}, "chunked prefill, or fewer tokens a step, where the server has them"),
    ],
)
def test_the_remedy_is_one_that_this_engine_has_and_that_is_not_on(options, asked, remedy):
    assert prefill_stalls(recorded("whole"), Knobs(options=options, asked=asked)).remedy.startswith(remedy)


@pytest.mark.parametrize(("options", "named"), [({"max_model_len"}, True), ({"threads"}, False), (None, False)])
def test_a_limit_is_named_only_where_the_engine_has_it(options, named):
    usage = series([0.1 + 0.01 * n for n in range(60)])
    found = kv_growth([trace(n) for n in range(40)], usage, Knobs(options=options))
    assert ("--max-model-len" in found.remedy) is named


def test_with_chunked_prefill_there_is_nothing_to_say():
    assert prefill_stalls(recorded("chunked")) is None
    assert symptoms(recorded("chunked"), load_series(RECORDINGS / "vllm-chunked-prefill.json")) == []


def test_pauses_that_no_prompt_explains_are_the_machines():
    steady = [trace(n, start_ms=n * 3) for n in range(4)]
    stop = [replace(t, chunks_ns=tuple(s + (300 * MS if s > 200 * MS else 0) for s in t.chunks_ns)) for t in steady]
    assert prefill_stalls(stop) is None


def test_first_tokens_that_come_all_the_time_explain_nothing():
    often = [trace(n, start_ms=n * 5, gap_ms=10, chunks=30) for n in range(200)]
    assert prefill_stalls(often) is None


def test_a_million_gaps_take_seconds_of_processor_and_not_minutes():
    many = [trace(n, start_ms=n, gap_ms=10, chunks=26) for n in range(40_000)]
    before = time.process_time()
    assert prefill_stalls(many) is None
    assert time.process_time() - before < 4


@pytest.mark.parametrize("traces", [[], [trace(0, chunks=1)]])
def test_without_streams_there_is_nothing_to_say(traces):
    assert prefill_stalls(traces) is None


def test_a_cache_that_grows_for_the_same_work_is_found_out():
    found = kv_growth([trace(n) for n in range(40)], series([0.1 + 0.01 * n for n in range(60)]))
    assert found.code == "kv_growth"
    assert "from 4.9% to 14.9%" in found.cause


def test_a_cache_that_swings_does_not_grow():
    assert kv_growth([trace(n) for n in range(40)], series([0.1 + 0.05 * (n % 7) for n in range(60)])) is None


def test_the_first_answers_of_a_run_all_grow_together_and_are_no_growth():
    assert kv_growth([trace(n) for n in range(4)], series([0.1 + 0.01 * n for n in range(60)])) is None


def test_more_users_take_more_memory_without_a_symptom():
    load = series([0.01 * n for n in range(1, 61)]) | {"running": list(range(1, 61))}
    assert kv_growth([trace(n) for n in range(400)], load) is None


def test_a_server_that_tells_no_usage_has_no_symptom():
    assert kv_growth([trace(n) for n in range(40)], {}) is None


@pytest.mark.parametrize(("y", "expected"), [([1, 2, 3, 4], 1), ([4, 3, 2, 1], -1)])
def test_ranks_that_rise_together_correlate(y, expected):
    assert rank_correlation([10, 20, 30, 40], y) == expected
