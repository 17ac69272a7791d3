import json
import statistics
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt import demo
from llmopt.bench.schedule import arrival_offsets, make_schedule
from llmopt.core.domain import Workload
from unit.make import ns

SOURCE = demo.CALIBRATION_TEXT.read_text()


def make(tokenizer=None, salt="salt", usage_per_chunk=False, pool=None, **fields):
    workload = Workload(**{"output_tokens": 9, "concurrency": 2, "requests": 4} | fields)
    return make_schedule(
        workload, "m", salt=salt, source=SOURCE, tokenizer=tokenizer, usage_per_chunk=usage_per_chunk, pool=pool
    )


def body(request):
    return json.loads(request.body)


def offsets(count=1000, **fields):
    """In seconds."""
    found = arrival_offsets(Workload(**{"load": "open", "rate": 50.0} | fields), count)
    return [n / 1e9 for n in found]


# --- requests -----------------------------------------------------------------------------------------------------


def test_every_prompt_is_one_request_in_order():
    schedule = make()
    assert [r.index for r in schedule.requests] == [0, 1, 2, 3]
    assert len({body(r)["prompt"] for r in schedule.requests}) == 4
    assert (schedule.users, schedule.first, schedule.offsets_ns) == (2, (0, 1, 2, 3), None)


def test_every_engine_is_asked_for_the_same_work():
    asked = body(make().requests[0])
    assert (asked["max_tokens"], asked["temperature"], asked["ignore_eos"], asked["stream"]) == (9, 0, True, True)


def test_chat_sends_a_message():
    asked = body(make(endpoint="chat").requests[0])
    assert [m["role"] for m in asked["messages"]] == ["user"]
    assert "prompt" not in asked


def test_usage_per_chunk_is_asked_for_only_where_a_server_has_it():
    assert body(make().requests[0])["stream_options"] == {"include_usage": True}
    assert body(make(usage_per_chunk=True).requests[0])["stream_options"]["continuous_usage_stats"] is True


def test_lengths_are_drawn_from_the_seed(demo_tokenizer):
    shape = {"input_lengths": "uniform:8:40", "output_lengths": "uniform:1:9", "requests": 40}
    schedule = make(demo_tokenizer, **shape)
    assert {r.prompt_tokens for r in schedule.requests} <= set(range(8, 41))
    assert len({r.prompt_tokens for r in schedule.requests}) > 10
    assert {body(r)["max_tokens"] for r in schedule.requests} == set(range(1, 10))
    assert all(len(demo_tokenizer.encode(body(r)["prompt"]).ids) == r.prompt_tokens for r in schedule.requests)


def test_a_seed_and_a_salt_repeat_a_run_exactly(demo_tokenizer):
    shape = {"input_lengths": "uniform:8:40", "load": "open", "rate": 5.0, "arrival": "poisson"}
    assert make(demo_tokenizer, **shape) == make(demo_tokenizer, **shape)
    other = make(demo_tokenizer, seed=1, **shape)
    assert other.offsets_ns != make(demo_tokenizer, **shape).offsets_ns
    assert [r.prompt_tokens for r in other.requests] != [
        r.prompt_tokens for r in make(demo_tokenizer, **shape).requests
    ]


def test_another_salt_changes_prompts_and_nothing_else(demo_tokenizer):
    shape = {"input_lengths": "uniform:8:40", "load": "open", "rate": 5.0, "arrival": "poisson"}
    one, two = make(demo_tokenizer, salt="a", **shape), make(demo_tokenizer, salt="b", **shape)
    assert not {r.body for r in one.requests} & {r.body for r in two.requests}
    assert [r.prompt_tokens for r in one.requests] == [r.prompt_tokens for r in two.requests]
    assert one.offsets_ns == two.offsets_ns


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"requests": 7}, 7),
        ({"requests": None, "duration_s": 3.0, "load": "open", "rate": 5.0}, 15),
        ({"requests": None, "duration_s": 4.0, "load": "ramp", "rate": 1.0, "rate_to": 9.0}, 20),
        ({"requests": None, "duration_s": 3.0}, 33),
    ],
    ids=["requests", "open loop by time", "ramp by time", "closed loop by time"],
)
def test_how_many_requests_are_prepared(fields, count):
    assert len(make(pool=33, **fields).requests) == count


def test_a_cap_and_limits_reach_the_client():
    schedule = make(load="open", rate=5.0, max_concurrency=3, retries=2, duration_s=9.0, request_timeout_s=4.0)
    assert (schedule.users, schedule.retries, schedule.duration_s, schedule.request_timeout_s) == (3, 2, 9.0, 4.0)
    assert make(load="open", rate=5.0).users == 0


# --- arrivals -----------------------------------------------------------------------------------------------------


def test_constant_gaps():
    assert offsets(5, rate=4.0) == [0, 0.25, 0.5, 0.75, 1.0]


@given(
    st.sampled_from(["constant", "poisson", "gamma"]), st.floats(0.05, 20), st.floats(0.1, 5000), st.integers(2, 300),
    st.integers(0, 99),
)  # fmt: skip
def test_the_rate_is_exact_and_a_seed_repeats_whatever_was_drawn(arrival, burstiness, rate, count, seed):
    """The gaps of n requests fill n / rate seconds; the last one follows the last request."""
    shape = {"arrival": arrival, "burstiness": burstiness, "rate": rate, "seed": seed}
    found = offsets(count, **shape)
    assert found[0] == 0
    assert all(a <= b for a, b in pairwise(found))
    assert found[-1] <= count / rate + 1e-6
    assert found == offsets(count, **shape)


@pytest.mark.parametrize(
    ("shape", "variation"),
    [
        ({"arrival": "poisson"}, 1.0),
        ({"arrival": "gamma", "burstiness": 4.0}, 0.5),
        ({"arrival": "gamma", "burstiness": 0.25}, 2.0),
    ],
)
def test_gaps_vary_as_their_distribution_does(shape, variation):
    gaps = [b - a for a, b in pairwise(offsets(20_000, **shape))]
    assert statistics.stdev(gaps) / statistics.mean(gaps) == pytest.approx(variation, rel=0.1)
    assert statistics.mean(gaps) == pytest.approx(1 / 50, rel=0.01)


@pytest.mark.parametrize(("start", "end"), [(10.0, 30.0), (30.0, 10.0), (20.0, 20.0)])
def test_a_ramp_goes_evenly_from_one_rate_to_the_other(start, end):
    found = offsets(2000, load="ramp", rate=start, rate_to=end)
    seconds = 2 * 2000 / (start + end)
    assert 1 / (found[1] - found[0]) == pytest.approx(start, rel=0.01)
    assert 1 / (found[-1] - found[-2]) == pytest.approx(end, rel=0.01)
    half = sum(t < seconds / 2 for t in found) / (seconds / 2)
    assert half == pytest.approx((start + (start + end) / 2) / 2, rel=0.01)


# --- conversations, data sets and recorded traffic ------------------------------------------------------------------


def test_a_later_turn_repeats_what_was_said():
    schedule = make(endpoint="chat", turns=3, requests=6)
    assert (schedule.first, schedule.follower) == ((0, 3), (1, 2, -1, 4, 5, -1))
    first, second, third = (body(r)["messages"] for r in schedule.requests[:3])
    assert [m["role"] for m in third] == ["user", "assistant", "user", "assistant", "user"]
    assert (second[:1], third[:3]) == (first, second)
    assert [r.conversation for r in schedule.requests] == [0, 0, 0, 1, 1, 1]
    assert len(second[1]["content"].split(" ")) == 9


def test_turns_that_do_not_come_out_even():
    schedule = make(turns=3, requests=5)
    assert (len(schedule.requests), schedule.first, schedule.follower) == (5, (0, 3), (1, 2, -1, 4, -1))


def test_an_open_loop_of_conversations_plans_their_beginnings():
    assert make(turns=2, requests=6, load="open", rate=2.0).offsets_ns == (0, ns(0.5), ns(1.0))


def test_a_trace_is_replayed(tmp_path, demo_tokenizer):
    file = tmp_path / "trace.jsonl"
    rows = [{"arrival_s": 3, "input_tokens": 20, "output_tokens": 5}, {"arrival_s": 4.5, "prompt": "as it was said"}]
    file.write_text("\n".join(map(json.dumps, rows)))
    schedule = make(demo_tokenizer, load="trace", trace_file=str(file), requests=None)
    one, two = schedule.requests
    assert schedule.offsets_ns == (0, ns(1.5))
    assert (one.prompt_tokens, one.output_tokens) == (20, 5)
    assert (body(two)["prompt"], two.output_tokens) == ("as it was said", 9)
    assert two.prompt_tokens == len(demo_tokenizer.encode("as it was said").ids)


def test_prompts_of_a_data_set_with_the_lengths_of_its_answers(tmp_path, demo_tokenizer):
    file = tmp_path / "data.jsonl"
    file.write_text('{"prompt": "one", "output_tokens": 3}\n{"prompt": "two"}\n')
    schedule = make(demo_tokenizer, dataset=str(file))
    said = sorted((body(r)["prompt"].partition(" ")[2], r.output_tokens) for r in schedule.requests)
    assert said == [("one", 3)] * 2 + [("two", 9)] * 2
    assert {r.output_tokens for r in make(demo_tokenizer, dataset=str(file), output_lengths="5").requests} == {5}


def test_a_seed_draws_the_same_rows_in_every_run_behind_another_salt(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"row {n}"}) + "\n" for n in range(50)))
    one, two = ([body(r)["prompt"] for r in make(dataset=str(file), salt=salt).requests] for salt in ("a", "b"))
    assert [p.partition(" ")[2] for p in one] == [p.partition(" ")[2] for p in two]
    assert not {p[:12] for p in one} & {p[:12] for p in two}


@pytest.mark.parametrize(
    ("fields", "again"),
    [
        ({"requests": None, "duration_s": 3.0}, True),
        ({"requests": 4, "duration_s": 3.0}, False),
        ({"requests": None, "duration_s": 3.0, "load": "open", "rate": 5.0}, False),
    ],
)
def test_a_closed_loop_by_time_begins_anew_after_its_last_request(fields, again):
    assert make(pool=33, **fields).again is again


def test_whether_the_lengths_of_prompts_are_exact(demo_tokenizer):
    assert make(demo_tokenizer).exact_prompts
    assert not make().exact_prompts
