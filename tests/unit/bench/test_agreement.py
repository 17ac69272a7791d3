import pytest

from llmopt.bench.agreement import compare
from unit.make import closed_loop, failed

TRACES = closed_loop(64, 4)  # first token after 100 ms, ten tokens, 100 ms between them


def told(ttft_s=0.1, itl_s=0.1, n=64, gaps=576):
    return {"server_ttft_s": {"mean": ttft_s, "n": n}, "server_itl_s": {"mean": itl_s, "n": gaps}}


@pytest.mark.parametrize(
    ("server_s", "agrees"), [(0.1, True), (0.082, True), (0.081, False), (0.122, True), (0.123, False)]
)
def test_first_tokens_within_10_ms_and_10_per_cent_agree(server_s, agrees):
    found = compare(TRACES, told(ttft_s=server_s))["ttft"]
    assert (found["agrees"], found["client_s"], found["n"]) == (agrees, pytest.approx(0.1), 64)


@pytest.mark.parametrize(("server_s", "agrees"), [(0.1, True), (0.091, True), (0.089, False)])
def test_gaps_between_tokens_within_1_ms_and_10_per_cent_agree(server_s, agrees):
    assert compare(TRACES, told(itl_s=server_s))["itl"]["agrees"] is agrees


def test_other_counts_are_not_compared_and_the_reason_is_kept():
    found = compare(TRACES, told(n=65, gaps=700))
    assert (found["ttft"]["agrees"], found["itl"]["agrees"]) == (None, None)
    assert "65 first tokens, the client 64" in found["ttft"]["why"]
    assert "700 gaps" in found["itl"]["why"]


def test_a_failed_request_without_a_token_is_in_neither_count():
    assert compare([*TRACES, failed()], told())["ttft"]["n"] == 64


def test_a_server_that_does_not_tell_is_not_compared():
    found = compare(TRACES, {})
    assert found["ttft"] == found["itl"]
    assert (found["ttft"]["agrees"], found["ttft"]["why"]) == (None, "the server does not tell it")


def test_answers_of_one_chunk_have_no_gap():
    whole = closed_loop(4, 4, tokens=1)
    assert compare(whole, told(n=4, gaps=0))["itl"]["why"] == "the client knows no gap between tokens"
