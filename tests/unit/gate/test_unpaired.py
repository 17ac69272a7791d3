"""Stored runs: never surer than the noise between sessions allows."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from llmopt.core.errors import Inconclusive
from llmopt.gate.judge import judge_stored
from llmopt.gate.thresholds import parse_thresholds
from llmopt.gate.unpaired import SessionNoise, sample, sessions
from tests.unit.gate.blocks import reading

(TPOT,) = THRESHOLDS = parse_thresholds(["tpot_p50:2%:3%"])
ASSUMED = SessionNoise(spread=0.05, freedom=30, source="assumed")


def runs(count: int, slower: float = 0.0, session: str = ""):  # type: ignore[no-untyped-def]
    return [
        reading(
            tpot=0.01 * (1 + slower) * (1 + 0.001 * (n % 3)), session=session or f"s{n}", run_id=f"{session}{slower}{n}"
        )
        for n in range(count)
    ]


def judged(base, candidate, noise: SessionNoise = ASSUMED) -> str:  # type: ignore[no-untyped-def]
    return judge_stored(base, candidate, THRESHOLDS, (), noise=lambda _: noise, confidence=0.99).status


def test_many_runs_of_one_session_are_no_surer_than_its_session() -> None:
    few, many = (sample(runs(n, session="a"), runs(n, session="b"), TPOT, ASSUMED).error for n in (3, 300))
    assert many > 0.05
    assert many == pytest.approx(few, rel=0.05)


def test_sessions_of_one_day_are_no_surer_than_the_day_and_less_sure_where_they_are_apart() -> None:
    apart = [reading(tpot=0.01 * (1 + 0.2 * (n % 2)), session=f"s{n}") for n in range(8)]
    assert sample(runs(8), runs(8), TPOT, ASSUMED).error > 0.05
    assert sample(runs(8), apart, TPOT, ASSUMED).error > 1.05 * sample(runs(8), runs(8), TPOT, ASSUMED).error


def test_a_loss_within_the_noise_of_a_session_is_inconclusive() -> None:
    assert judged(runs(50, session="a"), runs(50, 0.06, session="b")) == "inconclusive"


def on_days(found):  # type: ignore[no-untyped-def]
    return [replace(one, started_at=f"2026-01-{day:02d}T10:00:00Z") for day, one in enumerate(found, 1)]


def test_the_same_loss_over_many_days_is_found() -> None:
    assert judged(on_days(runs(8)), on_days(runs(8, 0.06))) == "regression"


def with_gap(found):  # type: ignore[no-untyped-def]
    """The fourth run lacks the figure."""
    return [replace(r, metrics=r.metrics | {"tpot_s": None}) if n == 3 else r for n, r in enumerate(found)]


@pytest.mark.parametrize("gaps", [(True, False), (False, True), (True, True)])
def test_a_run_without_the_figure_hides_no_loss_of_the_others(gaps: tuple[bool, bool]) -> None:
    sides = [
        with_gap(on_days(runs(12, s))) if gap else on_days(runs(12, s)) for gap, s in zip(gaps, (0, 0.06), strict=True)
    ]
    for thresholds in (THRESHOLDS, parse_thresholds([])):
        found = judge_stored(*sides, thresholds, (), noise=lambda _: ASSUMED, confidence=0.99)
        assert (found.status, found.reasons) == ("regression", ("tpot_p50",))
        assert found.notes[0].startswith("tpot_p50 is unknown in ")


def test_a_figure_that_only_the_candidate_lost_is_no_pass() -> None:
    quiet = SessionNoise(spread=0.002, freedom=20, source="calibrated")
    assert judged(on_days(runs(8)), with_gap(on_days(runs(8, 0.0001))), quiet) == "inconclusive"
    assert judged(with_gap(on_days(runs(8))), on_days(runs(8, 0.0001)), quiet) == "pass"


def test_bad_runs_that_the_base_has_no_figure_of_make_no_regression_of_the_candidates() -> None:
    disturbed = [replace(r, metrics=r.metrics | {"tpot_s": {"p50": 0.013}}) for r in runs(8)]
    lost = [replace(r, metrics=r.metrics | {"tpot_s": None}) for r in runs(8)]
    sides = [
        [r if n % 2 else b for n, (r, b) in enumerate(zip(runs(8), bad, strict=True))] for bad in (lost, disturbed)
    ]
    quiet = SessionNoise(spread=0.002, freedom=20, source="calibrated")
    base, candidate = (on_days([r for r in side for _ in range(2)]) for side in sides)
    apart = [[replace(r, session=f"s{n}") for n, r in enumerate(side)] for side in (base, candidate)]
    found = judge_stored(*apart, THRESHOLDS, (), noise=lambda _: quiet, confidence=0.99)
    assert (found.status, found.changes[0].withheld) == ("inconclusive", True)


def test_what_both_sides_lost_once_is_no_pass() -> None:
    quiet = SessionNoise(spread=0.002, freedom=20, source="calibrated")
    assert judged(with_gap(on_days(runs(20))), with_gap(on_days(runs(20, 0.0001))), quiet) == "inconclusive"


def test_a_figure_that_one_base_run_alone_has_does_not_vanish_from_a_pass() -> None:
    bare = [replace(r, metrics=r.metrics | {"tpot_s": None}) for r in on_days(runs(8))]
    sides = ([on_days(runs(8))[0], *bare[1:]], on_days(runs(8, 0.0001)))
    found = judge_stored(*sides, parse_thresholds([]), (), noise=lambda _: ASSUMED, confidence=0.99)
    assert "tpot_p50 is known in fewer than 2 runs of a side" in found.reasons


def test_sessions_of_one_hour_do_not_speak_for_other_days() -> None:
    assert judged(runs(8), runs(8, 0.06)) == "inconclusive"


def test_a_small_calibrated_noise_lets_one_session_speak() -> None:
    quiet = SessionNoise(spread=0.002, freedom=20, source="calibrated")
    assert judged(runs(5, session="a"), runs(5, 0.06, session="b"), quiet) == "regression"
    assert judged(runs(5, session="a"), runs(5, session="b"), quiet) == "pass"


def test_one_run_of_a_side_says_nothing() -> None:
    with pytest.raises(Inconclusive, match="one alone"):
        judged(runs(1), runs(8))


def test_runs_that_do_not_tell_their_session_are_one() -> None:
    assert len(sessions([reading(), reading(), reading(session="a")])) == 2


def test_offsets_of_sessions_raise_no_alarm() -> None:
    draw, alarms = random.Random(0), 0
    for _ in range(300):
        offsets = [draw.gauss(0, 0.05) for _ in range(2)]
        sides = [[reading(tpot=0.01 * (1 + o) * (1 + draw.gauss(0, 0.01)), session=name) for _ in range(10)]
                 for o, name in zip(offsets, "ab", strict=True)]  # fmt: skip
        alarms += judged(*sides) == "regression"
    assert alarms <= 3
