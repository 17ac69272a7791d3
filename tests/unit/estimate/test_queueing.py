import pytest

from llmopt.estimate.queueing import queue_at
from llmopt.estimate.roofline import Times


def closed(users):
    """10 ms of prompt each, then 90 ms whoever is there: 10 requests/s alone, 100 at most."""
    whole = 0.01 * users + 0.09
    return Times(
        prefill_s=0.01, step_s=0.001, ttft_s=0.01, itl_s=0.001, e2e_s=whole, output_tps=users / whole,
        requests_per_s=users / whole, busy=0.01 * users / whole, bound="bandwidth",
    )  # fmt: skip


def test_an_idle_engine_answers_as_if_alone():
    found = queue_at(0.1, closed, 64)
    assert found.ttft_s == pytest.approx(0.01, rel=0.01)
    assert found.in_flight == 1


def test_a_prompt_waits_as_in_a_queue_of_one_server():
    found = queue_at(50, closed, 64)  # busy half of the time with prompts: 0.5 × 10 ms / (2 × 0.5), and half a step
    assert found.ttft_s == pytest.approx(0.01 + 0.005 + 0.0005, rel=0.01)


def test_waiting_grows_with_the_rate():
    waits = [queue_at(rate, closed, 64).ttft_s for rate in (5, 20, 40, 60)]
    assert waits == sorted(waits)


def test_near_saturation_nothing_is_predicted_and_said_why():
    found = queue_at(75, closed, 64)
    assert found.ttft_s is None
    assert "saturation" in found.refused


def test_beyond_it_the_queue_grows_without_end():
    assert "without end" in queue_at(200, closed, 64).refused
