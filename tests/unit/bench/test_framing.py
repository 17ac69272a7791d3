from itertools import accumulate, pairwise

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.bench.framing import MAX_HEAD_BYTES, MAX_LINE_BYTES, Chunks, Framing, FramingError, body_of, parse_head

TEXT = st.text(st.characters(codec="ascii", categories=("L", "N")), max_size=12).map(str.encode)
EVENT = st.builds(lambda word, end: b"data: " + word + end, TEXT, st.sampled_from([b"\n\n", b"\r\n\r\n"]))
EVENTS = st.lists(EVENT, max_size=5).map(b"".join)


@st.composite
def chunked(draw, body):
    """A body in chunks of any size, some with an extension, with or without a trailer."""
    places = draw(st.lists(st.integers(0, len(body)), max_size=6))
    wire = b""
    for start, end in pairwise(sorted({0, *places, len(body)})):
        extension = draw(st.sampled_from([b"", b";a", b";ext=1"]))
        wire += b"%x%s\r\n%s\r\n" % (end - start, extension, body[start:end])
    trailer = draw(st.sampled_from([b"", b"X-Checksum: none\r\n"]))
    return b"Transfer-Encoding: chunked\r\n", wire + b"0\r\n" + trailer + b"\r\n"


@st.composite
def responses(draw):
    """(wire, body, whether only the end of the connection ends it)."""
    events = draw(st.booleans())
    body = draw(EVENTS if events else st.binary(max_size=300))
    kind = b"Content-Type: %s\r\n" % (b"text/event-stream" if events else b"text/plain")
    interim = draw(st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n"]))
    form = draw(st.sampled_from(["chunked", "length", "eof"]))
    more, wire = {"length": (b"Content-Length: %d\r\n" % len(body), body), "eof": (b"", body)}.get(form) or draw(
        chunked(body)
    )
    head = b"HTTP/1.1 200 OK\r\nX-Word: " + draw(TEXT) + b"\r\n" + kind + more + b"\r\n"
    return interim + head + wire, body, form == "eof"


@st.composite
def in_reads(draw, wire):
    cuts = draw(st.lists(st.integers(1, max(1, len(wire) - 1)), max_size=10))
    if draw(st.booleans()):  # the end is where a terminator may come in pieces
        cuts += [len(wire) - n for n in draw(st.lists(st.integers(1, min(9, len(wire) - 1)), max_size=4))]
    return [wire[a:b] for a, b in pairwise(sorted({0, *cuts, len(wire)}))]


def by_h11(wire):
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(wire)
    client.receive_data(b"")
    found = iter(client.next_event, h11.NEED_DATA)
    body = b""
    for event in found:
        if isinstance(event, h11.Data):
            body += bytes(event.data)
        if isinstance(event, h11.EndOfMessage):
            return body
    raise AssertionError("h11 saw no end")


def ends(reads):
    """What ``Framing`` says after each read, asked as the client asks it."""
    framing, pieces, told = Framing(), [], []
    for read in reads:
        pieces.append(read)
        told.append(framing.start(pieces) if framing.head is None else framing.ended(read, pieces))
    return told


@given(st.data())
def test_any_response_cut_anywhere_is_decoded_as_h11_does(data):
    wire, body, eof = data.draw(responses())
    reads = data.draw(in_reads(wire))
    found = body_of(wire, [len(r) for r in reads], closed=eof)
    assert found.text == body == by_h11(wire)
    assert found.whole
    edges = [0, *accumulate(map(len, reads))]
    assert all(part in wire[edges[read] : edges[read + 1]] for read, part in found.parts)


@given(st.data())
def test_the_end_is_seen_with_the_last_read_and_never_before(data):
    wire, _, eof = data.draw(responses())
    told = ends(data.draw(in_reads(wire)))
    assert told == [False] * (len(told) - 1) + [not eof]


@given(st.data())
def test_a_response_that_was_cut_off_is_not_whole(data):
    wire, _, _ = data.draw(responses().filter(lambda r: not r[2]))
    short = wire[: data.draw(st.integers(0, len(wire) - 1))]
    found = body_of(short, [len(short)] if short else [], closed=True)
    assert found is None or not found.whole
    assert not short or ends([short]) == [False]


NOISE = st.binary(max_size=200) | st.builds(
    lambda start, rest: start + rest,
    st.sampled_from(
        [
            b"HTTP/1.1 ",
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: ",
        ]
    ),
    st.binary(max_size=200),
)


@given(NOISE, st.data())
def test_noise_is_a_framing_error_or_nothing(noise, data):
    reads = data.draw(in_reads(noise)) if len(noise) > 1 else [noise]
    try:
        ends(reads)
        body_of(noise, [len(r) for r in reads], closed=True)
    except FramingError:
        pass


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 " + b"2" * 5000 + b" OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"<html>",
    ],
    ids=["long status", "long length", "negative length", "two lengths", "ssh", "html"],
)
def test_what_is_no_response_is_said(head):
    with pytest.raises(FramingError):
        ends([head])


def test_a_head_without_an_end_is_not_kept_for_ever():
    assert parse_head(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1000) is None
    with pytest.raises(FramingError):
        parse_head(b"HTTP/1.1 200 OK\r\nX: " + b"x" * MAX_HEAD_BYTES)


@pytest.mark.parametrize("size", [b"", b"+5", b"-5", b"0x5", b"1_0", b"5 5", b"\xd9\xa5"])
def test_a_chunk_size_is_hex_digits_and_nothing_else(size):
    with pytest.raises(FramingError, match="bad chunk size"):
        Chunks().feed(size + b"\r\n")


def test_a_chunk_size_without_an_end_is_not_kept_for_ever():
    chunks = Chunks()
    chunks.feed(b"1;" + b"x" * (MAX_LINE_BYTES - 100))
    with pytest.raises(FramingError):
        chunks.feed(b"x" * 200)


def test_what_came_before_bad_chunking_stands():
    wire = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ngood\r\nzz\r\nbad"
    found = body_of(wire, [len(wire)], closed=True)
    assert (found.text, found.whole) == (b"good", False)
    assert "zz" in found.problem


@pytest.mark.parametrize(
    ("head", "keeps"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: Close\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\nConnection: keep-alive\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\n\r\n", False),
    ],
    ids=["1.1", "close", "1.0", "1.0 keep-alive", "no length"],
)
def test_which_connections_can_be_used_again(head, keeps):
    assert parse_head(head).keeps_open is keeps
