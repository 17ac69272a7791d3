import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.bench.stream import events, read_answer


def sse(*payloads):
    """The bytes of a stream with these events."""
    words = [p if isinstance(p, str) else json.dumps(p, ensure_ascii=False) for p in payloads]
    return "".join(f"data: {word}\n\n" for word in words).encode()


def text(content="x", used=None, finish=None):
    event = {"choices": [{"index": 0, "text": content, "finish_reason": finish}]}
    return event if used is None else event | {"usage": {"prompt_tokens": 5, "completion_tokens": used}}


def delta(used=None, finish=None, **fields):
    event = {"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}
    return event if used is None else event | {"usage": {"prompt_tokens": 5, "completion_tokens": used}}


def usage(output, **fields):
    return {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": output} | fields}


def read(*payloads):
    """Every event in a read of its own, at 1, 2, 3 …"""
    return read_answer((n, sse(p)) for n, p in enumerate(payloads, 1))


def stamps(answer):
    return [(c.at_ns, c.tokens) for c in answer.chunks]


WHOLE = sse(text("héllo ✓", 1), text("", 1), text("b", 3), text("", None, "length"), usage(3), "[DONE]")


@given(st.lists(st.integers(0, len(WHOLE)), max_size=12))
def test_a_stream_that_is_split_anywhere_gives_the_same_answer(cuts):
    edges = [0, *sorted(cuts), len(WHOLE)]
    parts = [(7, WHOLE[a:b]) for a, b in pairwise(edges)]
    assert read_answer(parts) == read_answer([(7, WHOLE)])


@given(st.integers(0, len(WHOLE)))
def test_line_ends_of_two_bytes_may_be_split_too(cut):
    data = WHOLE.replace(b"\n", b"\r\n")
    cut = min(cut, len(data))
    assert read_answer([(7, data[:cut]), (7, data[cut:])]) == read_answer([(7, WHOLE)])


def test_byte_by_byte_loses_no_token():
    answer = read_answer((n, WHOLE[n : n + 1]) for n in range(len(WHOLE)))
    assert [c.tokens for c in answer.chunks] == [1, 2]
    assert (answer.output_tokens, answer.finish_reason, answer.done) == (3, "length", True)


def test_an_event_has_the_stamp_of_the_read_that_completed_it():
    assert list(events([(1, b"data: a"), (2, b"b\n\nda"), (3, b"ta: c\n")])) == [(2, "ab"), (3, "c")]


def test_a_last_event_without_a_line_end_counts():
    assert list(events([(1, b"data: [DONE]")])) == [(1, "[DONE]")]


def test_comments_and_other_fields_are_no_events():
    assert list(events([(1, b": ping\nevent: message\nid: 5\nretry: 10\ndata: x\n\n")])) == [(1, "x")]


def test_nothing_read_is_an_empty_answer():
    assert read_answer([]).chunks == []


def test_several_events_in_one_read_are_one_chunk():
    answer = read_answer([(1, sse(text("a", 1), text("b", 2))), (2, sse(text("c", 3)))])
    assert stamps(answer) == [(1, 2), (2, 1)]


def test_the_tokens_of_one_read_are_unknown_when_one_of_them_is():
    assert stamps(read_answer([(1, sse(text("a", 1), text("b")))])) == [(1, None)]


def test_a_role_alone_is_no_token():
    assert stamps(read(delta(role="assistant"), delta(role="assistant", content=""), delta(content="x"))) == [(3, None)]


def test_a_chunk_counts_the_tokens_by_which_its_usage_grew():
    assert stamps(read(text("ab", 2), text("c", 3))) == [(1, 2), (2, 1)]


def test_an_empty_text_counts_where_the_usage_grows():
    assert stamps(read(text("a", 1), text("", 2), text("b", 3))) == [(1, 1), (2, 1), (3, 1)]


def test_an_empty_text_counts_for_nothing_where_the_usage_stands():
    assert stamps(read(text("a", 1), text("", 1))) == [(1, 1)]


def test_a_trailing_usage_and_done_count_for_nothing():
    answer = read(text("a"), text("b"), usage(2), "[DONE]")
    assert stamps(answer) == [(1, None), (2, None)]
    assert (answer.prompt_tokens, answer.output_tokens, answer.done) == (5, 2, True)


def test_a_finish_reason_alone_is_no_token():
    answer = read(text("a"), text("", finish="stop"), usage(1))
    assert (stamps(answer), answer.finish_reason) == ([(1, None)], "stop")


def test_a_usage_that_comes_only_with_the_finish_reason_makes_no_token():
    answer = read(text("a"), text("b"), text("c"), text("", 3, "length"))
    assert stamps(answer) == [(1, None), (2, None), (3, None)]


def test_a_usage_that_comes_only_with_the_last_token_is_not_that_tokens_own():
    answer = read(text("a"), text("b"), text("c", 3, "length"))
    assert sum(c.tokens or 0 for c in answer.chunks) <= 1


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_is_marked(name):
    answer = read(delta(**{name: "hm"}), delta(content="yes"))
    assert [(c.at_ns, c.reasoning) for c in answer.chunks] == [(1, True), (2, False)]


def test_a_tool_call_is_a_token():
    call = delta(tool_calls=[{"index": 0, "function": {"name": "f", "arguments": ""}}])
    assert len(read(call).chunks) == 1


def test_cached_prompt_tokens_are_kept():
    assert read(usage(1, prompt_tokens_details={"cached_tokens": 4})).cached_tokens == 4
    assert read(usage(1, prompt_tokens_details=None)).cached_tokens is None


def test_an_error_event_ends_the_answer():
    answer = read(text("a"), {"error": {"message": "out of memory"}}, text("b"))
    assert (answer.error, len(answer.chunks)) == ("out of memory", 1)


def test_an_error_in_plain_words():
    assert read({"error": "no"}).error == "no"


def test_what_is_no_json_is_an_error():
    assert "not JSON" in read("<html>").error


@pytest.mark.parametrize(
    "event",
    [
        5,
        None,
        {"choices": [5]},
        {"choices": {"0": {}}},
        {"choices": [{"delta": "x"}]},
        {"choices": [{"delta": {"tool_calls": [5]}}]},
        {"choices": [], "usage": {"completion_tokens": "3"}},
        {"choices": [], "usage": {"prompt_tokens_details": 3}},
    ],
)
def test_an_event_of_another_shape_is_an_error_and_no_crash(event):
    assert read(event).error


def test_a_long_error_is_cut():
    assert len(read({"error": "x" * 5000}).error) <= 200
