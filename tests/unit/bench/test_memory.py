import pytest

from llmopt.bench.memory import memory_split

GB = 10**9
FACTS = {
    "weights_bytes": 14 * GB,
    "kv_cache_bytes": 50 * GB,
    "activation_bytes": 2 * GB,
    "baseline_bytes": 4 * GB,
    "kv_capacity_tokens": 400_000,
    "max_concurrency": 12.5,
}


def split(vram=None, rss=None, used=None, **facts):
    return memory_split(FACTS | facts, peak_vram_bytes=vram, peak_rss_bytes=rss, kv_usage_peak=used)


@pytest.mark.parametrize(("vram", "adds_up"), [(70, True), (73, True), (74, False), (67, True), (66, False)])
def test_parts_may_differ_from_the_whole_by_five_per_cent(vram, adds_up):
    found = split(vram=vram * GB)
    assert (found["adds_up"], found["unexplained_bytes"], found["total_is"]) == (adds_up, (vram - 70) * GB, "VRAM")


@pytest.mark.parametrize("part", ["weights_bytes", "kv_cache_bytes", "activation_bytes", "baseline_bytes"])
def test_with_a_part_unknown_nothing_can_be_said(part):
    assert split(vram=90 * GB, **{part: None})["adds_up"] is None


def test_parts_that_are_more_than_the_whole_are_wrong_whatever_is_unknown():
    assert split(vram=40 * GB, baseline_bytes=None)["adds_up"] is False


def test_main_memory_that_was_never_touched_is_in_no_sample():
    lazy = split(rss=26 * GB, used=0.1)
    assert (lazy["kv_cache_used_bytes"], lazy["adds_up"], lazy["unexplained_bytes"]) == (5 * GB, True, 0)
    assert split(rss=22 * GB, used=0.1)["adds_up"] is False, "used, and so it was touched"


MIB = 1 << 20
SMALL = {"weights_bytes": 20 * MIB, "kv_cache_bytes": 0, "activation_bytes": 5 * MIB, "baseline_bytes": 75 * MIB}


@pytest.mark.parametrize(
    ("sampled", "adds_up"),
    [(100, True), (105, True), (110, None), (280, None), (356, None), (357, False), (900, False)],
)
def test_what_libraries_may_explain_is_not_said_to_add_up(sampled, adds_up):
    found = split(rss=sampled * MIB, **SMALL)
    assert (found["adds_up"], found["unexplained_bytes"]) == (adds_up, (sampled - 100) * MIB)
    assert ("libraries" in (found["why"] or "")) is (adds_up is None)


def test_on_a_gpu_there_are_no_libraries_to_explain_anything():
    assert split(vram=110 * MIB, **SMALL)["adds_up"] is False


def test_what_the_engine_does_not_tell_is_the_reason():
    assert split(vram=90 * GB, activation_bytes=None)["why"] == "the engine does not tell activation"


def test_an_engine_that_says_nothing_has_a_total_alone():
    found = memory_split({}, peak_vram_bytes=None, peak_rss_bytes=GB)
    assert (found["total_bytes"], found["total_is"], found["source"], found["adds_up"]) == (GB, "PSS", None, None)


def test_without_a_sample_nothing_is_compared():
    assert split()["adds_up"] is None
    assert split()["total_is"] is None
