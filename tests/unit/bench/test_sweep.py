import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.bench.load import Progress
from llmopt.bench.sweep import (
    CLOSE_ENOUGH,
    DEFAULT_SHARE,
    LONGEST_POINT,
    Point,
    falls_behind,
    point_of,
    requests_for,
    search,
    shares_of,
    sweep,
    verdict_of,
)
from llmopt.core.domain import Doubt, Verdict
from llmopt.core.errors import UsageError
from llmopt.core.statistics import wilson
from unit import make

SLO = "ttft<1s"
SHARES = {SLO: 0.95}


class Server:
    """Keeps up until ``capacity`` requests a second, and meets the SLOs until ``limit``."""

    def __init__(self, capacity=math.inf, limit=math.inf, planned=400, met_above=0.5):
        self.capacity, self.limit, self.planned, self.met_above = capacity, limit, planned, met_above
        self.asked = []

    def measure(self, rate, times=1):
        self.asked.append((rate, times))
        planned = self.planned * times
        met = planned if rate <= self.limit else round(planned * self.met_above)
        return Point(
            rate=rate, completed_rps=min(rate, self.capacity), saturated=rate > self.capacity, met={SLO: met},
            planned=planned,
        )  # fmt: skip


# --- sweep --------------------------------------------------------------------------------------------------------


@given(st.floats(1, 1000))
def test_a_sweep_brackets_the_saturation(capacity):
    points = sweep(Server(capacity).measure, 1.0)
    kept, lost = [p.rate for p in points if not p.saturated], [p.rate for p in points if p.saturated]
    assert max(kept) <= capacity < min(lost)
    assert min(lost) / max(kept) < 1.1
    assert [p.rate for p in points] == sorted(p.rate for p in points)


def test_a_sweep_of_a_server_that_keeps_up_with_all_ends():
    assert len(sweep(Server().measure, 1.0)) <= 16


def test_a_sweep_that_begins_beyond_saturation_is_one_point():
    assert [p.saturated for p in sweep(Server(0.5).measure, 1.0)] == [True]


# --- search -------------------------------------------------------------------------------------------------------


@given(st.floats(0.05, 5000), st.floats(0.5, 50))
def test_a_search_finds_the_highest_rate_that_is_met(limit, first):
    if limit < first / 16:
        return
    found = search(Server(limit=limit).measure, first, SHARES)
    assert found.best <= limit < found.above
    assert found.above / found.best <= CLOSE_ENOUGH


def test_a_server_that_meets_nothing_has_no_best_rate():
    found = search(Server(limit=0.0).measure, 8.0, SHARES)
    assert found.best is None
    assert found.above < 1


def test_what_is_undecided_is_measured_longer_and_then_not_shown():
    """94 of 100 with a wanted share of 95 %: neither the lower nor the upper end of its interval decides."""
    server = Server(limit=0.0, planned=100, met_above=0.94)
    found = search(server.measure, 4.0, SHARES)
    assert found.best is None
    assert (4.0, 1) in server.asked
    assert (4.0, LONGEST_POINT) in server.asked


def test_a_point_that_is_plain_is_measured_once():
    server = Server(limit=10.0)
    search(server.measure, 4.0, SHARES)
    assert {times for _, times in server.asked} == {1}


def test_past_saturation_nothing_passes_however_many_met_the_slo():
    found = search(Server(capacity=10.0).measure, 4.0, SHARES)
    assert found.best <= 10.0


def test_every_slo_has_the_share_that_it_names():
    slos = ["ttft_p99<1s", "tpot_p50<1s", "e2e<1s"]
    assert shares_of(slos) == {"ttft_p99<1s": 0.99, "tpot_p50<1s": 0.5, "e2e<1s": DEFAULT_SHARE}


@pytest.mark.parametrize("statistic", ["mean", "min", "max"])
def test_a_statistic_that_counts_no_requests_cannot_be_searched_for(statistic):
    with pytest.raises(UsageError, match=f"{statistic} is none of them"):
        shares_of([f"ttft_{statistic}<1s"])


@pytest.mark.parametrize(
    ("met", "passes"),
    [({"a": 1000, "b": 700}, True), ({"a": 700, "b": 1000}, False), ({"a": 1000}, False), ({"a": 980, "b": 700}, None)],
)
def test_every_slo_must_be_kept_by_its_own_share(met, passes):
    point = Point(rate=1.0, completed_rps=1.0, saturated=False, met=met, planned=1000)
    assert verdict_of([point], {"a": 0.98, "b": 0.5}) is passes


def beyond(rate, most=10.0):
    """A client that cannot send more than ``most`` requests a second."""
    return None if rate > most else Server().measure(rate)


def test_a_search_ends_below_what_the_client_can_send():
    found = search(lambda rate, times: beyond(rate), 4.0, SHARES)
    assert found.best <= 10.0 < found.above
    assert found.shares == SHARES


def test_a_sweep_ends_below_what_the_client_can_send():
    points = sweep(beyond, 1.0)
    assert [(p.rate, p.saturated) for p in points] == [(1.0, False), (2.0, False), (4.0, False), (8.0, False)]


@pytest.mark.parametrize("share", [0.5, 0.9, 0.95, 0.99])
def test_a_point_has_enough_requests_to_pass(share):
    n = requests_for(share)
    assert wilson(n, n)[0] > share
    assert n < 2000


# --- while a point runs -------------------------------------------------------------------------------------------


def progress(finished, inside):
    return Progress(finished=finished, failed=0, active=inside, waiting=0)


def test_a_queue_that_grows_is_falling_behind():
    behind = falls_behind(rate=100.0, unloaded_s=0.1)
    assert not behind(progress(0, 10))
    assert not behind(progress(0, 49))
    assert behind(progress(60, 60))
    assert not behind(progress(1000, 60))


def run(rate_kept, stopped=False, never_settled=False, ok=100, failed=0, met=None):
    reasons = [Doubt(code="ended_early", severity="suspect", message="m", remedy="r")] if stopped else []
    if never_settled:
        reasons.append(Doubt(code="never_steady", severity="suspect", message="m", remedy="r"))
    metrics = {
        "requests_ok": ok,
        "requests_failed": failed,
        "requests_per_s": rate_kept,
        "requests_per_s_whole": 1.0,
        "slos_met": met,
    }
    return make.run(metrics=metrics, verdict=Verdict.of(tuple(reasons)))


@pytest.mark.parametrize(
    ("facts", "saturated"),
    [
        ({"rate_kept": 10.0}, False),
        ({"rate_kept": 9.6}, False),
        ({"rate_kept": 9.4}, True),
        ({"rate_kept": None}, False),
        ({"rate_kept": None, "never_settled": True}, True),
        ({"rate_kept": 10.0, "stopped": True}, True),
    ],
)
def test_what_is_saturated(facts, saturated):
    assert point_of(10.0, run(**facts)).saturated is saturated


def test_failed_requests_did_not_meet_the_slo():
    point = point_of(10.0, run(10.0, ok=90, failed=10, met={SLO: 80}))
    assert (point.met, point.planned) == ({SLO: 80}, 100)
