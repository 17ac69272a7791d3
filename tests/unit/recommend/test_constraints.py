import pytest

from llmopt.core.errors import UsageError
from llmopt.recommend.constraints import DEFAULT_MAX_KL, make_goal, on_memory
from llmopt.recommend.rank import recommend
from unit.make import QUALITY, candidate


def limits(goal):
    return [(limit.metric, limit.bound) for limit in goal.limits]


def test_a_goal_without_words_keeps_close_to_the_base():
    goal = make_goal([])
    assert limits(goal) == [("kl", DEFAULT_MAX_KL)]
    assert goal.optimize == "throughput"


def test_a_goal_holds_every_limit():
    goal = make_goal(["tps_p50>20"], max_memory="2GiB", max_kl=0.05, optimize="latency")
    assert limits(goal) == [("tps", 20), ("peak_rss_bytes", 2**31), ("kl", 0.05)]


def test_memory_is_gpu_memory_where_there_is_a_gpu():
    assert limits(on_memory(make_goal([], max_memory="2GiB"), "peak_vram_bytes"))[0] == ("peak_vram_bytes", 2**31)


def test_a_limit_on_kl_takes_the_place_of_the_default():
    assert limits(make_goal(["kl<0.5"])) == [("kl", 0.5)]


def test_two_limits_on_kl_both_hold():
    assert sorted(limits(make_goal(["kl<0.5"], max_kl=0.01))) == [("kl", 0.01), ("kl", 0.5)]


@pytest.mark.parametrize("max_kl", [-0.1, float("nan"), float("inf")])
def test_a_kl_that_cannot_be_is_refused(max_kl):
    with pytest.raises(UsageError):
        make_goal([], max_kl=max_kl)


def test_a_small_kl_keeps_its_digits():
    assert limits(make_goal([], max_kl=1.25e-7)) == [("kl", 1.25e-7)]
    assert limits(make_goal([], max_kl=0.0123456789)) == [("kl", 0.0123456789)]


def test_memory_needs_its_unit():
    with pytest.raises(UsageError, match="needs a unit"):
        make_goal([], max_memory="2")


def test_an_unknown_objective_names_the_nearest():
    with pytest.raises(UsageError, match="unknown objective 'latenzy'") as caught:
        make_goal([], optimize="latenzy")
    assert "latency" in caught.value.hint


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"slos": ["ttft_p95<0ms"]}, "contradicts itself"),
        ({"slos": ["error_rate<0"]}, "contradicts itself"),
        ({"slos": ["ttft_p95<300ms", "ttft_p95>=400ms"]}, "contradict each other"),
        ({"slos": ["slo_attainment>1"]}, "contradicts itself"),
        ({"slos": [], "max_cost": 1.0}, "needs the price"),
        ({"slos": ["cost_blended<1"]}, "needs the price"),
        ({"slos": [], "optimize": "quality,cost"}, "needs the price"),
        ({"slos": [], "optimize": "quality,"}, "unknown objective"),
        ({"slos": [], "optimize": "ttft"}, "is a distribution"),
        ({"slos": [], "optimize": "task_score_"}, "is the score of a task"),
        ({"slos": [], "min_scores": ["mmlu>x"]}, "no score"),
        ({"slos": [], "min_top1": 2.0}, "out of range"),
        ({"slos": [], "quantizations": ["nf4"], "exclude": ["nf*"]}, "contradict each other"),
    ],
)
def test_a_goal_that_makes_no_sense_is_refused(options, word):
    with pytest.raises(UsageError, match=word):
        make_goal(**options)


def test_zero_errors_can_be_asked_for():
    assert limits(make_goal(["error_rate<=0"]))[0] == ("error_rate", 0)


def rejected(goal, *candidates, **options):
    return {r.label: r.because for r in recommend(candidates, goal, **options).rejected}


VLLM = candidate("gguf-q8_0", serve={"backend": "vllm"})


@pytest.mark.parametrize(
    ("options", "out"),
    [
        ({"backends": ["hf"]}, "gguf-q8_0 on vllm"),
        ({"quantizations": ["gguf-*"]}, "nf4 on hf"),
        ({"exclude": ["nf4"]}, "nf4 on hf"),
        ({"exclude": ["vllm"]}, "gguf-q8_0 on vllm"),
    ],
)
def test_a_filter_takes_out_what_it_names(options, out):
    assert list(rejected(make_goal([], **options), candidate("nf4"), VLLM)) == [out]


def test_a_filter_that_knows_nobody_is_mistyped():
    with pytest.raises(UsageError, match="no run here is of that") as caught:
        recommend([candidate("nf4"), VLLM], make_goal([], backends=["vlm"]))
    assert "vllm" in caught.value.hint


def test_an_unknown_licence_does_not_pass_and_is_named():
    known = {"nf4": "mit", "gguf-q8_0": None, "awq": "gemma"}
    found = rejected(
        make_goal([], licences=["MIT", "apache-2.0"]), candidate("nf4"), VLLM, candidate("awq"),
        licence=lambda artifact: known[artifact["quantization"]],
    )  # fmt: skip
    assert "its licence is not known" in found["gguf-q8_0 on vllm"][0]
    assert found["awq on hf"][0] == "its licence is gemma, not mit or apache-2.0"
    assert "nf4 on hf" not in found


def test_a_task_score_can_be_a_limit():
    def scored(name, value):
        tasks = [{"task": "mmlu", "metric": "acc", "value": value, "stderr": 0.01, "samples": 99}]
        return candidate(name, quality=QUALITY | {"tasks": tasks})

    found = rejected(
        make_goal([], min_scores=["mmlu>=0.6"]), scored("good", 0.7), scored("bad", 0.5), candidate("none")
    )
    assert found["bad on hf"] == ("mmlu>=0.6: measured 0.5000",)
    assert "it was not given the task" in found["none on hf"][0]
    assert "good on hf" not in found


def test_where_all_were_given_a_task_its_score_ranks_and_not_kl():
    def scored(name, value, kl):
        tasks = [{"task": "mmlu", "metric": "acc", "value": value, "stderr": 0.001, "samples": 99}]
        return candidate(name, quality=QUALITY | {"tasks": tasks, "kl_mean": kl, "kl_mean_interval": None})

    found = recommend([scored("near", 0.5, 0.001), scored("good", 0.7, 0.01)], make_goal([], optimize="quality")).ranked
    assert [r.label for r in found] == ["good on hf", "near on hf"]
