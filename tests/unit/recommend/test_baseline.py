import pytest

from llmopt.core.domain import Goal
from llmopt.core.errors import UsageError
from llmopt.recommend.rank import recommend
from unit.make import QUALITY, candidate

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
