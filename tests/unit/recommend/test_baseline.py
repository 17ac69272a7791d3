import pytest

from llmopt.core.domain import Doubt, Goal, Verdict
from llmopt.core.errors import UsageError
from llmopt.core.limits import parse_limit
from llmopt.recommend.candidates import comparable
from llmopt.recommend.rank import recommend
from unit.make import QUALITY, candidate, curve, metrics, run

BASE = candidate("bf16", throughput=100, memory=8.0, kl=0.0)
SMALL = candidate("nf4", throughput=200, memory=4.0, latency_s=0.5)


def against(*candidates, **options):
    return {r.label: r.against_baseline for r in recommend(candidates, Goal(), **options).ranked}


def test_the_base_on_the_same_engine_is_the_baseline():
    elsewhere = candidate("bf16", throughput=50, serve={"backend": "vllm"}, memory=1.0)
    found = against(SMALL, BASE, elsewhere)
    assert found["nf4 on hf"]["label"] == "bf16 on hf"
    assert found["bf16 on hf"] is None


def test_before_and_after_in_everything_that_is_known():
    changes = against(SMALL, BASE)["nf4 on hf"]["changes"]
    assert {c["of"] for c in changes.values()} == {"latency", "throughput", "memory", "quality"}
    assert changes["output_tps"]["ratio"] == pytest.approx(2)
    assert changes["peak_rss_bytes"]["ratio"] == 0.5
    assert changes["kl"]["difference"] == pytest.approx(0.01)
    assert changes["kl"]["ratio"] is None


def test_the_interval_of_a_ratio_is_over_runs():
    change = against(SMALL, BASE)["nf4 on hf"]["changes"]["output_tps"]
    assert change["low"] < 2 < change["high"]
    assert change["over"] == "runs"


def test_one_run_a_side_has_no_interval():
    change = against(candidate("nf4", 200, runs=1), BASE)["nf4 on hf"]["changes"]["output_tps"]
    assert (change["low"], change["high"], change["over"]) == (None, None, None)


@pytest.mark.parametrize("wanted", ["nf4 on hf", "NF4", SMALL.key, SMALL.key[:8]])
def test_a_baseline_by_label_quantization_or_key(wanted):
    assert against(SMALL, BASE, baseline=wanted)["bf16 on hf"]["label"] == "nf4 on hf"


def test_a_baseline_that_is_nobody_names_the_nearest():
    with pytest.raises(UsageError, match="no run that can be compared") as caught:
        against(SMALL, BASE, baseline="nf5 on hf")
    assert "nf4 on hf" in caught.value.hint


def test_a_baseline_that_could_be_two_names_them():
    other = candidate("nf4", serve={"backend": "vllm"})
    with pytest.raises(UsageError, match="could be 2 configurations"):
        against(SMALL, other, baseline="nf4")


def test_without_a_base_nothing_is_compared():
    assert against(SMALL) == {"nf4 on hf": None}


def test_a_base_that_breaks_a_limit_is_compared_with_all_the_same():
    big = candidate("bf16", memory=9e9, quality=QUALITY)
    goal = Goal(limits=())
    assert recommend([big, SMALL], goal).ranked[0].against_baseline["label"] == "bf16 on hf"


def at_its_own_point(slower, faster, *limits):
    """Of two curves, what is said of the faster one."""
    found = comparable([*slower, *faster]).candidates
    goal = Goal(limits=tuple(map(parse_limit, limits)))
    return next(r for r in recommend(found, goal).ranked if r.label == "nf4 on hf")


def test_before_and_after_are_of_one_load():
    slow, fast = curve("bf16", u1=(50, 0.1), u16=(200, 1.0)), curve("nf4", u1=(100, 0.04), u16=(400, 0.4))
    row = at_its_own_point(slow, fast, "ttft_p95<500ms")
    found = row.against_baseline
    assert (found["load"], found["changes"]["output_tps"]["ratio"]) == ("16 users", 2)
    assert found["changes"]["ttft_p50"]["ratio"] == pytest.approx(0.4)
    own = found["own_points"]
    assert (own["load_before"], own["load_after"], own["changes"]["output_tps"]["ratio"]) == ("1 user", "16 users", 8)
    assert "2.00× bf16 on hf at 16 users" in row.reasons[0]


def test_the_highest_load_of_both_where_the_base_lacks_the_chosen_one():
    slow, fast = (
        curve("bf16", u1=(50, 0.1), u4=(150, 0.1)),
        curve("nf4", u1=(100, 0.04), u4=(300, 0.04), u16=(900, 0.1)),
    )
    assert at_its_own_point(slow, fast).against_baseline["load"] == "4 users"


def test_without_a_load_of_both_quality_alone_is_compared():
    found = at_its_own_point(curve("bf16", u1=(50, 0.1)), curve("nf4", u16=(900, 0.1))).against_baseline
    assert found["load"] is None
    assert {c["of"] for c in found["changes"].values()} == {"quality"}


def test_a_ratio_lies_in_its_interval_and_peaks_have_none():
    before = [run("bf16", throughput=t, metrics=metrics(t, memory=m)) for t, m in ((100, 1e9), (100, 2e9), (400, 8e9))]
    after = [run("nf4", throughput=t, metrics=metrics(t, memory=m)) for t, m in ((200, 1e9), (200, 1e9), (200, 1e9))]
    changes = recommend(comparable([*before, *after]).candidates, Goal(), baseline="bf16").ranked
    changes = next(r for r in changes if r.label == "nf4 on hf").against_baseline["changes"]
    assert changes["output_tps"]["low"] < changes["output_tps"]["ratio"] < changes["output_tps"]["high"]
    assert (changes["peak_rss_bytes"]["ratio"], changes["peak_rss_bytes"]["low"]) == (0.125, None)


def test_one_change_has_one_ratio_of_the_figures_that_are_shown():
    before = [run("bf16", throughput=t, run_id=f"a{n}") for n, t in enumerate((100.0, 100.0, 160.0))]
    after = [run("nf4", throughput=t, run_id=f"b{n}") for n, t in enumerate((200.0, 200.0, 210.0))]
    row = recommend(comparable([*before, *after]).candidates, Goal()).ranked[0]
    change = row.against_baseline["changes"]["output_tps"]
    assert (change["before"], change["after"], change["ratio"]) == (100, 200, 2)
    assert change["low"] < 2 < change["high"]
    assert "2.00× bf16 on hf" in row.reasons[0]


def test_a_baseline_without_a_valid_run_is_refused():
    doubt = Doubt(code="errors", severity="invalid", message="all failed", remedy="look")
    broken = candidate("bf16", 3, verdict=Verdict(status="invalid", reasons=(doubt,)))
    with pytest.raises(UsageError, match="no valid run: all failed"):
        against(SMALL, broken, baseline="bf16")


def test_a_base_of_another_model_that_was_forced_is_a_baseline_only_when_named():
    other = run("bf16", artifact=run("bf16").artifact | {"base_key": "other", "base_name": "other"})
    made = comparable([other, run("nf4", throughput=1000.0)], force=True).candidates
    label = next(c.label for c in made if c.name == "nf4 on hf")
    assert against(*made)[label] is None
    assert against(*made, baseline="bf16")[label]["unlike"] == ["another model"]
