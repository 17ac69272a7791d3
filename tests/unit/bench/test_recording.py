import io
from array import array

from hypothesis import given
from hypothesis import strategies as st

from llmopt.bench.recording import ClockOffset, Exchange, Finished, Spool, Summary, read_spool

integers = st.integers(-(2**63), 2**63 - 1)
exchanges = st.builds(
    Exchange, integers, integers, integers, integers, st.none() | integers, integers,
    st.none() | st.text(max_size=9), st.booleans(), st.binary(max_size=9), st.binary(max_size=9), st.binary(max_size=9),
    st.binary(max_size=99),
)  # fmt: skip
SUMMARY = Summary(1, 2, 0.5, 3, [ClockOffset(5, 6, 7)], [(8, 9)], "stopped")


def spool(*messages):
    file = io.BytesIO()
    writer = Spool(file)
    for message in messages:
        writer.append(message)
    return file.getvalue()


@given(st.lists(exchanges | st.just(SUMMARY), max_size=5))
def test_what_was_written_is_read(messages):
    assert list(read_spool(io.BytesIO(spool(*messages)))) == messages


@given(exchanges, exchanges, st.data())
def test_a_half_written_message_is_left_for_the_next_read(one, two, data):
    whole = spool(one, two)
    written = data.draw(st.integers(len(spool(one)), len(whole) - 1))
    file = io.BytesIO(whole[:written])
    assert list(read_spool(file)) == [one]
    place = file.tell()
    file.seek(written)
    file.write(whole[written:])
    file.seek(place)
    assert list(read_spool(file)) == [two]


@given(st.lists(exchanges, max_size=4))
def test_the_summary_alone(messages):
    assert list(read_spool(io.BytesIO(spool(*messages, SUMMARY)), summary_only=True)) == [SUMMARY]
    assert list(read_spool(io.BytesIO(spool(*messages)), summary_only=True)) == []


def finished(kernel):
    return Finished(0, 0, 1, 2, 3, 9, None, marks=array("q", [5, 6]), kernel=kernel, pieces=[b"ab", b"c"]).exchange()


def test_an_attempt_is_packed_read_by_read():
    packed = finished([b"k" * 48, b"l" * 48])
    assert (packed.raw, array("I", packed.sizes).tolist(), array("q", packed.user_ns).tolist()) == (
        b"abc",
        [2, 1],
        [5, 6],
    )
    assert packed.kernel == b"k" * 48 + b"l" * 48


def test_where_the_kernel_left_out_a_read_none_of_its_stamps_is_kept():
    assert finished([b"k" * 48, b""]).kernel == b""
