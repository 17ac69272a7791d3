import pytest

from llmopt.core.load_level import level, level_words, past_saturation, shape


@pytest.mark.parametrize(
    "change",
    [
        {"concurrency": 9},
        {"requests": 5},
        {"duration_s": 3.0},
        {"seed": 4},
        {"slos": ["ttft<1s"]},
        {"until": "ttft_p50±5%"},
    ],
)
def test_the_level_and_the_length_of_a_run_are_no_part_of_its_shape(change):
    assert shape(change) == shape({})


@pytest.mark.parametrize(
    "change", [{"input_tokens": 9}, {"load": "open", "rate": 2.0}, {"turns": 2}, {"prefix_tokens": 8}]
)
def test_what_is_asked_of_a_server_is(change):
    assert shape(change) != shape({})


def test_rates_of_an_open_loop_are_levels_and_its_arrivals_are_not():
    one, two = ({"load": "open", "rate": r} for r in (2.0, 4.0))
    assert shape(one) == shape(two)
    assert shape(one) != shape(one | {"arrival": "poisson"})


def test_a_field_that_was_added_later_makes_no_stranger():
    assert shape({"input_tokens": 8}) == shape({"input_tokens": 8, "images": 0, "stall_timeout_s": 60.0})


@pytest.mark.parametrize(
    ("workload", "value", "words"),
    [
        ({"concurrency": 1}, 1.0, "1 user"),
        ({"concurrency": 8}, 8.0, "8 users"),
        ({"load": "open", "rate": 2.5}, 2.5, "2.5 requests/s"),
        ({"load": "ramp", "rate": 1.0, "rate_to": 9.0}, None, "its ramp"),
        ({"load": "trace", "trace_file": "t.jsonl"}, None, "its trace"),
    ],
)
def test_levels_in_numbers_and_words(workload, value, words):
    assert (level(workload), level_words(workload)) == (value, words)


def test_past_saturation():
    assert past_saturation(10.0, 9.0, ())
    assert not past_saturation(10.0, 9.8, ())
    assert past_saturation(10.0, None, ("never_steady",))
    assert past_saturation(10.0, 9.9, ("ended_early",))
