import json
from bisect import bisect_left
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.bench.stream import MAX_EVENT_BYTES, events, read_answer

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
names = st.sampled_from(
    ["text", "delta", "finish_reason", "content", "tool_calls", "completion_tokens", "message", "error"]
)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=8
)


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
    """(stamp, tokens) of each chunk; tokens are ``None`` where they are not known of every one."""
    counts = [None] * len(answer.chunks_ns) if answer.chunk_tokens is None else answer.chunk_tokens
    return list(zip(answer.chunks_ns, counts, strict=True))


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
    assert answer.chunk_tokens == [1, 2]
    assert (answer.output_tokens, answer.finish_reason, answer.done) == (3, "length", True)


def test_an_event_has_the_stamp_of_the_read_that_completed_it():
    assert list(events([(1, b"data: a"), (2, b"b\n\nda"), (3, b"ta: c\n")])) == [(2, b"ab"), (3, b"c")]


def test_a_last_event_without_a_line_end_counts():
    assert list(events([(1, b"data: [DONE]")])) == [(1, b"[DONE]")]


def test_comments_and_other_fields_are_no_events():
    assert list(events([(1, b": ping\nevent: message\nid: 5\nretry: 10\ndata: x\n\n")])) == [(1, b"x")]


def test_nothing_read_is_an_empty_answer():
    assert read_answer([]).chunks_ns == []


def test_several_events_in_one_read_are_one_chunk():
    answer = read_answer([(1, sse(text("a", 1), text("b", 2))), (2, sse(text("c", 3)))])
    assert stamps(answer) == [(1, 2), (2, 1)]


def test_the_tokens_of_one_read_are_unknown_when_one_of_them_is():
    assert stamps(read_answer([(1, sse(text("a", 1), text("b")))])) == [(1, None)]


def test_a_role_alone_is_no_token():
    assert stamps(read(delta(role="assistant"), delta(role="assistant", content=""), delta(content="x"))) == [(3, None)]


def test_a_role_alone_is_no_token_even_if_usage_grows_and_its_growth_is_the_next_chunks():
    assert stamps(read(delta(used=1, role="assistant", content=""), delta(used=2, content="x"))) == [(2, 2)]


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
    assert stamps(answer) == [(1, None), (2, None), (3, None)]


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_is_marked(name):
    answer = read(delta(**{name: "hm"}), delta(content="yes"))
    assert (answer.chunks_ns, answer.reasoning, answer.first_visible_ns) == ([1, 2], True, 2)


def test_without_reasoning_the_first_token_is_the_first_visible_one():
    answer = read(delta(content="yes"))
    assert (answer.reasoning, answer.first_visible_ns) == (False, 1)


def test_a_tool_call_is_a_token():
    call = delta(tool_calls=[{"index": 0, "function": {"name": "f", "arguments": ""}}])
    assert len(read(call).chunks_ns) == 1


def test_cached_prompt_tokens_are_kept():
    assert read(usage(1, prompt_tokens_details={"cached_tokens": 4})).cached_tokens == 4
    assert read(usage(1, prompt_tokens_details=None)).cached_tokens is None


def test_an_error_event_ends_the_answer():
    answer = read(text("a"), {"error": {"message": "out of memory"}}, text("b"))
    assert (answer.error, len(answer.chunks_ns)) == ("error_event: out of memory", 1)


def test_an_error_in_plain_words():
    assert read({"error": "no"}).error == "error_event: no"


def test_what_is_no_json_is_an_error():
    assert read("<html>").error.startswith("bad_stream: ")


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
    assert read(event).error.startswith("bad_stream: ")


def test_a_long_error_is_cut():
    assert len(read({"error": "x" * 5000}).error) <= len("error_event: ") + 200


# --- the law: however a stream is cut into reads, it says the same, and each token has the stamp of its read ----------


class Told:
    """A stream as a server may write it, and what it says: (where it is complete in the bytes, text) of each token."""

    def __init__(self):
        self.wire, self.tokens, self.used, self.finish = b"", [], 0, None

    def say(self, event, end):
        self.wire += b"data: " + json.dumps(event, ensure_ascii=False).encode() + end
        return len(self.wire) - len(end) // 2


@st.composite
def told(draw):
    """Texts of any characters, comments, events without text, LF or CR LF; usage in every event, or at the end."""
    stream, end = Told(), draw(st.sampled_from([b"\n\n", b"\r\n\r\n"]))
    each = draw(st.booleans())
    words = st.text(st.characters(codec="utf-8"), max_size=5)
    for kind, word in draw(
        st.lists(st.tuples(st.sampled_from(["token", "token", "empty", "comment"]), words), max_size=8)
    ):
        if kind == "comment":
            stream.wire += b": ping" + end
        elif kind == "empty" or not word:
            stream.say(text("", stream.used if each else None), end)
        else:
            stream.used += 1
            stream.tokens.append((stream.say(text(word, stream.used if each else None), end), word))
    stream.finish = draw(st.sampled_from([None, "length", "stop"]))
    stream.say(text("", finish=stream.finish), end)
    stream.say(usage(stream.used), end)
    stream.wire += b"data: [DONE]" + end
    return stream


@given(told(), st.data())
def test_any_stream_cut_anywhere_says_the_same(stream, data):
    cuts = data.draw(st.lists(st.integers(0, len(stream.wire)), max_size=15))
    edges = [0, *sorted(cuts), len(stream.wire)]
    answer = read_answer((n, stream.wire[a:b]) for n, (a, b) in enumerate(pairwise(edges), 1))
    reads = [bisect_left(edges, complete) for complete, _ in stream.tokens]  # read n brings what ends at edge n
    assert (answer.texts, answer.error, answer.done) == ([word for _, word in stream.tokens], None, True)
    assert (answer.output_tokens, answer.finish_reason) == (stream.used, stream.finish)
    assert answer.chunks_ns == sorted(set(reads))
    assert answer.chunk_tokens in (None, [reads.count(n) for n in answer.chunks_ns])


@given(
    st.lists(
        st.binary(max_size=60) | st.binary(max_size=30).map(lambda noise: b"data: {" + noise + b"\n\n"), max_size=6
    )
)
def test_noise_never_raises(reads):
    read_answer(enumerate(reads))


@given(json_values)
def test_no_json_raises(value):
    read({"choices": [value], "usage": value, "error": None}, {"choices": value}, {"error": value})


def test_a_line_without_an_end_is_not_kept_for_ever():
    answer = read_answer((n, b"x" * 100_000) for n in range(2 * MAX_EVENT_BYTES // 100_000))
    assert answer.error.startswith("bad_stream: a line longer than")


def test_times_that_the_server_tells_with_its_answer():
    answer = read(
        text(used=1), text(used=2, finish="stop") | {"timings": {"prompt_ms": 12.5, "predicted_ms": 40, "n": 1}}
    )
    assert (answer.prefill_s, answer.decode_s) == (0.0125, 0.04)


@pytest.mark.parametrize("timings", [[1], "soon", {"prompt_ms": "12"}, {"prompt_ms": -1}, {}])
def test_timings_of_another_kind_are_no_times(timings):
    answer = read(text(finish="stop") | {"timings": timings})
    assert (answer.prefill_s, answer.decode_s, answer.error) == (None, None, None)
