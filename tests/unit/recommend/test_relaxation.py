import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.core.domain import Goal
from llmopt.core.limits import parse_limit
from llmopt.recommend.candidates import comparable
from llmopt.recommend.constraints import score_limit
from llmopt.recommend.rank import recommend
from unit.make import QUALITY, candidate, curve, metrics, run


def relaxed(runs, *limits):
    found = recommend(comparable(runs).candidates, Goal(limits=tuple(parse_limit(text) for text in limits)))
    assert not found.ranked
    return found.relaxation


CURVES = [*curve("a", u1=(50, 0.1), u4=(150, 0.2)), *curve("b", u1=(80, 0.15), u4=(200, 0.4))]


def test_the_limit_that_binds_and_the_least_that_lets_something_pass():
    found = relaxed(CURVES, "ttft_p95<90ms", "output_tps>100")
    assert found["binding"] == ["ttft_p95<90ms"]
    (each,) = found["each"]
    assert (each["label"], each["load"], each["to"]) == ("a on hf", "4 users", 0.2)
    assert each["relative"] == pytest.approx(0.2 / 0.09 - 1)
    assert (
        "relaxed to ttft_p95<=200ms (122% more) alone would let a on hf at 4 users through, with 150 tok/s"
        in each["words"]
    )


def test_each_limit_alone_is_told_when_either_would_do():
    found = relaxed(CURVES, "ttft_p95<250ms", "output_tps>=180")
    assert [(e["limit"], e["to"]) for e in found["each"]] == [("ttft_p95<250ms", 0.4), ("output_tps>=180", 150)]


def test_the_smallest_joint_relaxation_moves_several():
    found = relaxed([*curve("a", u1=(90, 0.11)), *curve("b", u1=(50, 0.05))], "ttft_p95<=100ms", "output_tps>=100")
    assert found["joint"]["label"] == "a on hf"
    assert [c["limit"] for c in found["joint"]["changes"]] == ["ttft_p95<=100ms", "output_tps>=100"]
    assert found["joint"]["excess"] == pytest.approx(0.1 + 0.1)


def test_two_limits_that_both_bind_are_not_bound_by_one():
    found = relaxed(curve("a", u1=(90, 0.11)), "ttft_p95<=100ms", "output_tps>=100")
    assert found["binding"] == []


def test_what_no_run_tells_is_said():
    found = relaxed(curve("a", u1=(90, 0.11)), "peak_vram_bytes<1GiB")
    assert found["never_known"] == ["peak_vram_bytes<1GiB"]
    assert found["joint"] is None


def test_the_new_bound_lets_it_pass():
    words = relaxed(CURVES, "ttft_p95<=90ms")["each"][0]
    limit = parse_limit(f"ttft_p95<={words['to']}s")
    assert recommend(comparable(CURVES).candidates, Goal(limits=(limit,))).ranked


def test_there_is_nothing_to_relax_where_something_passes():
    assert recommend([candidate()], Goal()).relaxation is None


def test_what_a_filter_takes_out_is_no_way_out():
    runs = [*curve("a", u1=(90, 0.5)), *curve("b", "vllm", u1=(90, 0.11))]
    goal = Goal(limits=(parse_limit("ttft_p95<100ms"),), backends=("hf",))
    assert recommend(comparable(runs).candidates, goal).relaxation["joint"]["label"] == "a on hf"


def test_rejections_are_counted_by_limit():
    goal = Goal(limits=(parse_limit("ttft_p95<90ms"), parse_limit("output_tps>150")))
    assert recommend(comparable(CURVES).candidates, goal).rejected_by == {"ttft_p95<90ms": 2, "output_tps>150": 1}


def test_runs_without_a_figure_are_no_way_out():
    runs = [run("dark", metrics=metrics() | {"ttft_s": None}), *curve("a", u1=(90, 0.11))]
    assert relaxed(runs, "ttft_p95<100ms")["joint"]["label"] == "a on hf"


def test_a_strict_limit_that_is_missed_by_nothing_is_what_gives():
    found = relaxed(curve("a", u1=(90, 0.1)), "ttft_p95<100ms")
    assert found["binding"] == ["ttft_p95<100ms"]
    assert found["each"][0]["words"].startswith("ttft_p95<100ms relaxed to ttft_p95<=100ms alone would let a on hf")
    assert found["joint"]["changes"][0]["limit_that_holds"] == "ttft_p95<=100ms"


def test_one_that_is_missed_by_nothing_is_not_kept_while_another_gives():
    found = relaxed(curve("a", u1=(90, 0.1)), "ttft_p95<100ms", "output_tps>=100")
    assert found["binding"] == []
    assert len(found["joint"]["changes"]) == 2


@given(st.floats(1e-5, 1e4))
def test_the_limit_that_is_printed_lets_it_pass(seconds):
    runs = curve("a", u1=(90, seconds))
    each = relaxed(runs, "ttft_p95<1us")["each"][0]
    limit = parse_limit(each["limit_that_holds"])
    assert recommend(comparable(runs).candidates, Goal(limits=(limit,))).ranked


def test_what_it_costs_is_told_where_a_price_is_known():
    candidates = comparable(CURVES, price_per_hour=3.6).candidates
    found = recommend(candidates, Goal(limits=(parse_limit("ttft_p95<90ms"),), price_per_hour=3.6)).relaxation
    assert found["each"][0]["cost"] == pytest.approx(20)
    assert found["joint"]["words"].endswith("with 50.0 tok/s and 20 per 1M output tokens")


def test_a_gauge_that_says_more_than_all_can_give_too():
    """Some engines' gauges do: a record may hold up to 105 %."""
    words = relaxed([run(metrics=metrics() | {"kv_usage_peak": 1.02})], "kv_usage_peak<50%")["each"][0]
    assert parse_limit(words["limit_that_holds"]).bound == 1.02


def test_a_score_below_nothing_can_give_too():
    quality = QUALITY | {"tasks": [{"task": "cola", "metric": "mcc", "value": -0.02}]}
    goal = Goal(limits=(score_limit("cola>=0.3"),))
    found = recommend(comparable([run(quality=quality)]).candidates, goal).relaxation
    assert found["each"][0]["limit_that_holds"] == "cola>=-0.02"
