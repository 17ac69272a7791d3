from llmopt.bench.schedule import closed_loop
from llmopt.core.domain import Workload


def bodies(**options):
    known = {"prompt_tokens": 5, "usage_per_chunk": False}
    workload = Workload(output_tokens=9, concurrency=2, **{k: options.pop(k) for k in ("endpoint",) if k in options})
    return closed_loop(workload, ("one", "two"), "m", **known | options)


def test_every_text_is_one_request_in_order():
    schedule = bodies()
    assert [(r.index, r.body["prompt"]) for r in schedule.requests] == [(0, "one"), (1, "two")]
    assert schedule.concurrency == 2


def test_every_engine_is_asked_for_the_same_work():
    body = bodies().requests[0].body
    assert (body["max_tokens"], body["temperature"], body["ignore_eos"], body["stream"]) == (9, 0, True, True)


def test_chat_sends_a_message():
    body = bodies(endpoint="chat").requests[0].body
    assert body["messages"] == [{"role": "user", "content": "one"}]
    assert "prompt" not in body


def test_usage_per_chunk_is_asked_for_only_where_a_server_has_it():
    assert bodies().requests[0].body["stream_options"] == {"include_usage": True}
    assert bodies(usage_per_chunk=True).requests[0].body["stream_options"]["continuous_usage_stats"] is True
