"""Verdicts from blocks."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest

from llmopt.core.errors import LlmoptError, UsageError
from llmopt.gate.blocks import Block, Reading
from llmopt.gate.counts import Counts
from llmopt.gate.decide import blocks_for, levels, sample_of
from llmopt.gate.design import make_design
from llmopt.gate.gaps import require_knowable
from llmopt.gate.judge import judge
from llmopt.gate.quality import compare_quality
from llmopt.gate.thresholds import parse_quality, parse_thresholds
from tests.unit.gate.blocks import GOOD, block, blocks, reading

DESIGN = make_design(8, 0.99, 0)
THREE = parse_thresholds(["tpot_p50:2%:3%", "output_tps:2%:3%", "ttft_p50:2%:3%"])


def verdict(found: list[Block], *texts: str, ended: bool = True):  # type: ignore[no-untyped-def]
    judgement = judge(found, DESIGN, parse_thresholds(texts) if texts else THREE, ended=ended)
    assert judgement is not None
    return judgement


def test_a_clear_loss_is_a_regression_of_what_lost() -> None:
    found = verdict(blocks(8, slower=0.06))
    assert (found.status, found.reasons) == ("regression", ("tpot_p50", "output_tps"))


def test_the_same_on_both_sides_passes() -> None:
    found = verdict(blocks(8))
    assert (found.status, [c.decision for c in found.changes]) == ("pass", ["equivalent"] * 3)


def test_a_gain_passes_and_is_called_one() -> None:
    assert [c.decision for c in verdict(blocks(8, slower=-0.2)).changes[:2]] == ["improved", "improved"]


def test_between_tolerated_and_blocking_no_number_of_blocks_decides() -> None:
    found = verdict(blocks(8, slower=0.04, noise=0.001), "tpot_p50:3%:10%")
    assert (found.status, found.changes[0].more_blocks) == ("inconclusive", None)


def test_noise_is_inconclusive_and_says_how_many_blocks_would_do() -> None:
    found = verdict(blocks(8, noise=0.05), "tpot_p50:2%:3%")
    assert found.status == "inconclusive"
    assert (found.changes[0].more_blocks or 0) > 8


def test_between_two_looks_there_is_no_verdict() -> None:
    assert judge(blocks(6, slower=0.5), DESIGN, THREE, ended=False) is None


def test_an_early_look_stops_when_it_is_clear() -> None:
    design = make_design(20, 0.99, 0)
    found = judge(blocks(5, slower=0.1), design, THREE, ended=False)
    assert found is not None
    assert (found.status, found.decided) == ("regression", True)


def test_an_early_look_that_is_not_clear_goes_on() -> None:
    found = judge(blocks(5, noise=0.05), make_design(20, 0.99, 0), THREE, ended=False)
    assert found is not None
    assert not found.decided


def test_an_early_look_that_is_clearly_no_loss_stops_too() -> None:
    found = judge(blocks(5, noise=0.0005), make_design(20, 0.99, 0), THREE, ended=False)
    assert found is not None
    assert (found.status, found.decided) == ("pass", True)


def test_the_metrics_have_nine_tenths_of_the_error_of_a_look() -> None:
    (row,) = verdict(blocks(8), "tpot_p50:5%").changes
    assert row.low == pytest.approx(row.loss - sample_of(row.by_block).bound(DESIGN.spent[-1] * 0.9))


def test_the_first_metric_has_half_of_the_error_and_the_others_take_holms_steps() -> None:
    lost, even = (sample_of([loss - 0.001, loss + 0.001] * 4) for loss in (0.1, 0.0))
    names = [one.name for one in THREE]
    assert levels(dict.fromkeys(names, even), THREE, 0.01) == dict(zip(names, (0.005, 0.0025, 0.0025), strict=True))
    found = levels(dict(zip(names, (even, lost, even), strict=True)), THREE, 0.01)
    assert found == dict(zip(names, (0.005, 0.0025, 0.005), strict=True))


def test_an_invalid_run_takes_its_block_out() -> None:
    good = blocks(8, slower=0.06)
    bad = replace(good[0], candidate=(reading(invalid=("too few",)), good[0].candidate[1]))
    found = verdict([bad, *good[1:]])
    assert (found.blocks, found.invalid) == (7, ("too few",))


@pytest.mark.parametrize(("where", "status"), [("base", "pass"), ("candidate", "inconclusive")])
def test_runs_of_the_candidate_that_do_not_count_are_no_pass_whatever_the_base_suffered(
    where: str, status: str
) -> None:
    broken = (reading(invalid=("errors",)), reading())
    found = [replace(b, **{where: broken}) if b.number < 2 else b for b in blocks(8)]
    both = [*found[:2], *(replace(b, base=broken) for b in found[2:4]), *found[4:]]
    assert (verdict(found).status, verdict(both).status) == (status, status)


def test_one_whole_block_is_not_called_none() -> None:
    assert verdict(blocks(1)).reasons == ("1 whole block",)


def test_no_whole_block_neither_passes_nor_fails() -> None:
    found = verdict([block(n, reading(), reading(invalid=("broken",))) for n in range(8)])
    assert (found.status, found.reasons) == ("inconclusive", ("no whole block",))


def test_failures_fail_where_every_figure_is_as_good() -> None:
    failing = reading(counts=replace(GOOD, failed=12, prompt_tokens=1536, output_tokens=768, requested_tokens=768))
    assert verdict([block(n, reading(), failing) for n in range(8)]).reasons == ("failed requests",)


def test_nothing_answered_on_either_side_is_an_error() -> None:
    dead = reading(counts=Counts(planned=60, failed=60, errors={"refused": 60}), invalid=("all failed",))
    with pytest.raises(LlmoptError, match="every request failed on both sides"):
        verdict([block(n, dead, dead) for n in range(8)])


def test_a_named_metric_that_is_unknown_is_refused_an_unnamed_one_left_out() -> None:
    with pytest.raises(UsageError, match="ttft_p99 is unknown"):
        verdict(blocks(8), "ttft_p99:5%")
    found = judge(blocks(8), DESIGN, parse_thresholds([]), ended=True)
    assert found is not None
    assert found.left_out == ("peak_vram_bytes", "peak_rss_bytes")


def test_zero_on_both_sides_has_no_ratio() -> None:
    with pytest.raises(UsageError, match="or zero, on both sides"):
        verdict([block(n, reading(tps=0.0), reading(tps=0.0)) for n in range(8)], "output_tps:5%")


def test_zero_in_the_base_has_no_ratio_and_is_no_pass() -> None:
    found = verdict([block(n, reading(tps=0.0), reading()) for n in range(8)], "ttft_p50:5%", "output_tps:5%")
    words = "output_tps is unknown, or zero, in all of the base's 16 runs: there is no ratio"
    assert (found.status, found.reasons) == ("inconclusive", (words,))


def test_a_worse_quality_fails_however_fast_it_is() -> None:
    def proven(kl: float, width: float):  # type: ignore[no-untyped-def]
        return {"kl_mean": kl, "kl_mean_interval": [kl - width, kl + width], "text_sha256": "a", "tokens": 8192}

    found = judge(
        [block(n, reading(quality=proven(0.02, 0.002)), reading(quality=proven(0.09, 0.006))) for n in range(8)],
        DESIGN, THREE, parse_quality([]), ended=True,
    )  # fmt: skip
    assert found is not None
    assert (found.status, found.reasons) == ("regression", ("kl",))


def test_proofs_on_different_texts_are_not_compared() -> None:
    sides = [reading(quality={"kl_mean": 0.01, "text_sha256": text, "tokens": 8192}) for text in "ab"]
    with pytest.raises(UsageError, match="different texts"):
        judge([block(n, *sides) for n in range(8)], DESIGN, THREE, parse_quality([]), ended=True)


def test_a_named_quality_that_one_side_lacks_is_refused() -> None:
    with pytest.raises(UsageError, match="has no kl"):
        judge(blocks(8), DESIGN, THREE, parse_quality(["kl:0.01"]), ended=True)


def test_more_blocks_make_a_narrower_interval() -> None:
    few, many = (sample_of([0.01, 0.02, 0.03, 0.04] * n) for n in (1, 5))
    assert many.bound(0.005) < few.bound(0.005)


def test_blocks_that_would_decide_are_the_fewest() -> None:
    count = blocks_for(0.01, 0.02, 0.005)
    assert count is not None
    assert blocks_for(0.01, 0.02, 0.004) >= count  # type: ignore[operator]
    assert blocks_for(1e-6, 0.02, 0.005) is None


def quality(kl: float, **rest):  # type: ignore[no-untyped-def]
    return {"kl_mean": kl, "kl_mean_interval": [kl * 0.9, kl * 1.1], "text_sha256": "a", "tokens": 8192} | rest


def test_an_equal_quality_is_no_pass_where_no_block_counts() -> None:
    slow = reading(tpot=0.02, quality=quality(0.02), invalid=("too many errors",))
    found = judge(
        [block(n, reading(quality=quality(0.02)), slow) for n in range(8)], DESIGN, THREE, parse_quality([]), ended=True
    )
    assert found is not None
    assert found.status == "inconclusive"


def test_an_equal_quality_beside_no_whole_block_says_so() -> None:
    sides = reading(quality=quality(0.02), invalid=("errors",)), reading(quality=quality(0.02))
    found = judge([block(n, *sides) for n in range(8)], DESIGN, THREE, parse_quality([]), ended=True)
    assert found is not None
    assert (found.status, found.reasons[0]) == ("inconclusive", "0 whole blocks of 8")


def proven(*sides: Reading):  # type: ignore[no-untyped-def]
    found = judge([block(n, *sides) for n in range(8)], DESIGN, THREE, parse_quality([]), ended=True)
    assert found is not None
    return found


def test_a_quality_that_only_the_candidate_has_is_told() -> None:
    found = proven(reading(), reading(quality=quality(0.9)))
    assert found.notes == ("kl is known of the candidate alone (0.9): it is not gated",)


def test_an_unquantized_base_is_the_reference_of_what_comes_from_it() -> None:
    base = reading(model="m", unquantized=True)
    assert proven(base, reading(model="m", quality=quality(0.9))).reasons == ("kl",)
    assert proven(base, reading(model="other", quality=quality(0.9))).quality == ()
    assert proven(reading(model="m", quality=quality(0.9)), base).status == "pass"


@pytest.mark.parametrize("where", [0, 1])
def test_of_proofs_that_differ_the_candidates_worst_counts(where: int) -> None:
    ours, theirs = reading(quality=quality(0.02)), [reading(quality=quality(0.02)), reading(quality=quality(0.9))]
    mixed = (theirs[where], theirs[1 - where])
    assert compare_quality([ours], mixed, parse_quality([]), confidence=0.99)[0].candidate == 0.9
    assert compare_quality(mixed, [ours], parse_quality([]), confidence=0.99)[0].base == 0.02


def test_a_proof_of_a_run_that_does_not_count_gives_way_to_others() -> None:
    invalid = reading(quality=quality(0.9), invalid=("errors",))
    sides = [[reading(quality=quality(0.02))], [invalid, reading(quality=quality(0.02))]]
    assert compare_quality(*sides, parse_quality([]), confidence=0.99)[0].outcome == "pass"


@pytest.mark.parametrize("figures", [{"perplexity": 0.0}, {"perplexity": 9.0, "perplexity_interval": [0.0, 11.0]}])
def test_a_perplexity_that_has_no_ratio_is_refused(figures: dict[str, object]) -> None:
    sides = [[reading(quality=quality(0.02, **{"perplexity": 10.0} | more))] for more in ({}, figures)]
    with pytest.raises(UsageError, match="the candidate's perplexity is"):
        compare_quality(*sides, parse_quality(["perplexity:1%"]), confidence=0.99)


def test_a_quality_that_only_the_base_has_is_no_pass() -> None:
    found = judge(
        [replace(b, base=tuple(replace(r, quality=quality(0.02)) for r in b.base)) for b in blocks(8)],
        DESIGN, THREE, parse_quality([]), ended=True,
    )  # fmt: skip
    assert found is not None
    assert (found.status, found.reasons) == ("inconclusive", ("kl is known of the base alone",))


def test_a_tail_without_an_interval_fails_nobody() -> None:
    sides = [reading(quality=quality(0.02, kl_p99=value)) for value in (0.1, 0.4)]
    found = judge([block(n, *sides) for n in range(8)], DESIGN, THREE, parse_quality(["kl_p99:0.05"]), ended=True)
    assert found is not None
    assert found.status == "inconclusive"


def test_failures_of_a_block_that_does_not_count_are_no_pass() -> None:
    lost = replace(GOOD, failed=12, prompt_tokens=1536, output_tokens=768, requested_tokens=768)
    bad = block(5, reading(), reading(counts=lost, invalid=("errors",)))
    assert verdict([*blocks(5), bad]).status == "inconclusive"


def without(found: Reading, *names: str, **more: object) -> Reading:
    return replace(found, metrics={n: v for n, v in found.metrics.items() if n not in names} | more)


def test_a_figure_that_the_candidate_lost_in_a_block_is_named_and_no_pass() -> None:
    bad = block(7, reading(), without(reading(), "tpot_s"))
    found = verdict([*blocks(7), bad])
    assert [(c.threshold.name, c.blocks) for c in found.changes] == [
        ("tpot_p50", 7),
        ("output_tps", 8),
        ("ttft_p50", 8),
    ]
    assert (found.status, found.reasons) == (
        "inconclusive",
        ("tpot_p50 is unknown in 2 of the candidate's 16 runs, 0 of the base's 16",),
    )
    words = "tpot_p50 is unknown in 0 of the base's 16 runs and 2 of the candidate's 16: the others are judged, without block 8"
    assert words in found.notes


def test_a_figure_that_the_base_lost_in_a_block_is_named_and_no_reason_against_a_pass() -> None:
    found = verdict([*blocks(7), block(7, without(reading(), "tpot_s"), reading())])
    assert (found.status, len(found.notes)) == ("pass", 1)


@pytest.mark.parametrize("first", [False, True])
def test_a_candidate_that_never_got_steady_in_half_the_blocks_is_no_pass(first: bool) -> None:
    """Its throughput over the steady part is unknown there, and everything else of those blocks counts all the same."""
    good = with_whole(blocks(8))
    slow = replace(without(reading(tpot=0.02, ttft=0.06), "output_tps", output_tps_whole=200.0))
    bad = [replace(b, candidate=(slow, slow)) if b.number % 2 == (not first) else b for b in good]
    found = judge(bad, DESIGN, parse_thresholds([]), ended=True)
    assert found is not None
    assert found.status != "pass"
    assert [(c.threshold.name, c.blocks) for c in found.changes] == [
        ("output_tps_whole", 8), ("tpot_p50", 8), ("ttft_p50", 8),
    ]  # fmt: skip


@pytest.mark.parametrize("texts", [(), ("tpot_p50:2%:3%", "ttft_p50:2%:3%")])
def test_a_loss_is_found_where_each_block_has_one_base_run_without_the_figure(texts: tuple[str, ...]) -> None:
    bad = [replace(b, base=(without(b.base[0], "tpot_s"), b.base[1])) for b in blocks(8, slower=0.5)]
    kept = [replace(b, candidate=tuple(without(r, output_tps=400.0) for r in b.candidate)) for b in bad]
    found = judge(kept, DESIGN, parse_thresholds(texts), ended=True)
    assert found is not None
    assert (found.status, found.reasons) == ("regression", ("tpot_p50",))
    assert "tpot_p50 is unknown in 8 of the base's 16 runs and 0 of the candidate's 16" in found.notes[0]


def test_a_named_figure_that_the_candidate_never_has_hides_no_other_loss() -> None:
    """A rate is unknown where latencies never get steady: the very loss must not end as an error of usage."""
    slow = without(reading(ttft=0.1), "output_tps")
    found = verdict([block(n, reading(), slow) for n in range(8)], "output_tps:3%", "ttft_p50:3%")
    assert (found.status, found.reasons) == ("regression", ("ttft_p50",))
    alone = verdict([block(n, reading(), without(reading(), "output_tps")) for n in range(8)], "output_tps:3%")
    assert alone.status == "inconclusive"
    found = verdict(
        [block(n, reading(), without(reading(), "output_tps")) for n in range(8)], "ttft_p50:3%", "output_tps:3%"
    )
    assert found.reasons == ("output_tps is known of the base alone",)


def test_what_no_block_knows_on_both_sides_does_not_vanish_from_a_pass() -> None:
    bad = [
        block(n, *(without(reading(), "tpot_s") if n % 2 == side else reading() for side in (0, 1))) for n in range(8)
    ]
    found = judge(bad, DESIGN, parse_thresholds([]), ended=True)
    assert found is not None
    assert (found.status, found.reasons[-1]) == ("inconclusive", "tpot_p50 is known in fewer than 2 blocks")


def losing(found: list[Block], *numbers: int) -> list[Block]:
    """The base has no TPOT in these blocks."""
    return [replace(b, base=tuple(without(r, "tpot_s") for r in b.base)) if b.number in numbers else b for b in found]


def test_a_candidate_that_kept_figures_of_runs_as_bad_as_the_base_lost_is_no_regression() -> None:
    """Half of all runs are disturbed, and the base has no figure of its own."""
    half = [
        replace(b, base=(b.base[0], without(b.base[1], "tpot_s")), candidate=(b.candidate[0], reading(tpot=0.013)))
        for b in blocks(8)
    ]
    found = verdict(half, "tpot_p50:5%")
    (row,) = found.changes
    assert (found.status, row.withheld, row.loss > 0.1, row.low < 0.025) == ("inconclusive", True, True, True)


def test_a_loss_of_every_run_is_one_whatever_the_base_lost() -> None:
    assert verdict(losing(blocks(8, slower=0.5), 0, 4), "tpot_p50:5%").status == "regression"


def test_where_nothing_remains_of_the_candidate_no_loss_is_sure() -> None:
    found = verdict(losing(blocks(8, slower=0.5), *range(2, 8)), "tpot_p50:5%")
    assert (found.status, found.changes[0].withheld) == ("inconclusive", True)


def test_what_one_run_of_the_candidate_lost_is_no_pass_whatever_the_base_lost() -> None:
    lost = (reading(), without(reading(), "tpot_s"))
    bad = [
        Block(number=0, base=lost, candidate=lost),
        Block(number=1, base=lost, candidate=(reading(), reading())),
        *blocks(8)[2:],
    ]
    found = verdict(bad, "tpot_p50:5%")
    words = "tpot_p50 is unknown in 1 of the candidate's 16 runs, 2 of the base's 16"
    assert (found.status, found.reasons) == ("inconclusive", (words,))


def test_figures_that_the_candidate_lost_too_do_not_make_up_for_the_bad_ones_that_the_base_lost() -> None:
    """Half of all runs are disturbed: the base has no figure of its own, the candidate has none of its best."""
    half = [
        replace(
            b,
            base=(b.base[0], without(b.base[1], "tpot_s")),
            candidate=(without(b.candidate[0], "tpot_s") if b.number % 2 else b.candidate[0], reading(tpot=0.013)),
        )
        for b in blocks(8)
    ]
    (row,) = verdict(half, "tpot_p50:5%").changes
    assert (row.decision, row.withheld) == ("inconclusive", True)


def test_a_gap_names_what_every_run_knows() -> None:
    bad = with_whole([*blocks(7), block(7, without(reading(), "output_tps"), reading())])
    (note,) = verdict(bad, "output_tps:3%").notes
    assert note.endswith("without block 8; every run knows --metric output_tps_whole")


def test_a_named_figure_that_no_run_happened_to_know_is_no_pass_and_no_error() -> None:
    bare = [block(n, *[without(reading(), "tpot_s")] * 2) for n in range(8)]
    found = verdict(bare, "ttft_p50:5%", "tpot_p50:5%")
    words = "tpot_p50 is unknown, or zero, in all of the base's 16 runs: there is no ratio"
    assert (found.status, found.reasons) == ("inconclusive", (words,))


def test_a_percentile_of_too_few_requests_hides_no_regression_of_another_metric() -> None:
    found = verdict(blocks(8, slower=0.5), "ttft_p99:5%", "tpot_p50:5%")
    assert (found.status, found.reasons, found.left_out) == ("regression", ("tpot_p50",), ("ttft_p99",))


@pytest.mark.parametrize(
    ("text", "known"),
    [("ttft_p95:5%", True), ("ttft_p99:5%", False), ("peak_vram_bytes:5%", False), ("itl_p50:5%", False), ("output_tps:5%", True)],
)  # fmt: skip
def test_after_one_block_only_what_no_other_block_will_know_is_refused(text: str, known: bool) -> None:
    side = [without(reading(), "output_tps")] * 2
    with nullcontext() if known else pytest.raises(UsageError, match="no ratio"):
        require_knowable(side, side, parse_thresholds([text]))


def with_whole(found: list[Block]) -> list[Block]:
    def add(side: tuple[Reading, ...]) -> tuple[Reading, ...]:
        return tuple(without(r, output_tps_whole=r.metrics.get("output_tps", 400.0)) for r in side)

    return [replace(b, base=add(b.base), candidate=add(b.candidate)) for b in found]


def test_a_named_metric_that_one_block_alone_knows_is_no_pass() -> None:
    bad = [block(n, without(reading(), "tpot_s"), without(reading(), "tpot_s")) for n in range(1, 8)]
    found = verdict([*blocks(1), *bad], "tpot_p50:5%", "ttft_p50:5%")
    assert (found.status, found.reasons[-1]) == ("inconclusive", "tpot_p50 is known in fewer than 2 blocks")


def test_a_stricter_confidence_makes_quality_less_sure() -> None:
    sides = [[reading(quality=quality(kl))] for kl in (0.02, 0.03)]
    one, other = (compare_quality(*sides, parse_quality(["kl:0.01"]), confidence=c)[0] for c in (0.975, 0.999))
    assert one.high - one.low < other.high - other.low
