import pytest

from llmopt.core.errors import UsageError
from llmopt.recommend.proposals import Range
from llmopt.recommend.space import Dropped, Engine, build, parse_knob

LLAMACPP = Engine(
    name="llamacpp",
    options=frozenset({"threads", "max_num_seqs"}),
    usual={"max_num_seqs": 8},
    tried={"threads": (1, 2)},
)


def loads_all(engine, quantization):
    return None


def test_each_knob_is_changed_alone_beside_the_usual_settings():
    space = build(["gguf-q8_0"], [LLAMACPP], loads_all)
    assert [c.label for c in space.configurations] == [
        "gguf-q8_0 on llamacpp", "gguf-q8_0 on llamacpp, threads 1", "gguf-q8_0 on llamacpp, threads 2"
    ]  # fmt: skip
    assert all(c.options.max_num_seqs == 8 for c in space.configurations)


def test_knobs_that_are_asked_for_are_combined():
    space = build(["gguf-q8_0"], [LLAMACPP], loads_all, {"threads": (1, 2), "max_num_seqs": (2, 4)})
    assert {(c.options.threads, c.options.max_num_seqs) for c in space.configurations} == {
        (1, 2),
        (1, 4),
        (2, 2),
        (2, 4),
    }


def test_a_knob_that_the_engine_lacks_is_told_and_left_out():
    space = build(["gguf-q8_0"], [LLAMACPP], loads_all, {"block_size": (16, 32)})
    assert [c.label for c in space.configurations] == ["gguf-q8_0 on llamacpp"]
    assert space.dropped == (Dropped(label="block_size on llamacpp", reason="llamacpp has no such option"),)


def test_what_cannot_be_loaded_keeps_its_reason():
    space = build(["bf16"], [LLAMACPP], lambda engine, quantization: f"{engine} reads gguf")
    assert space.configurations == ()
    assert space.dropped == (Dropped(label="bf16 on llamacpp", reason="llamacpp reads gguf"),)


def test_engine_that_is_not_here_is_dropped_with_the_way_to_get_it():
    space = build(["bf16"], [Engine(name="vllm", options=frozenset(), lacking="llmopt env create vllm")], loads_all)
    assert space.dropped == (Dropped(label="bf16 on vllm", reason="llmopt env create vllm"),)


def test_quantization_that_failed_takes_all_its_configurations_with_it():
    gone = Dropped(label="gguf-q8_0", reason="failed its proof")
    left = build(["gguf-q8_0", "gguf-q4_k_m"], [LLAMACPP], loads_all).without({"gguf-q8_0": gone})
    assert {c.quantization for c in left.configurations} == {"gguf-q4_k_m"}
    assert left.dropped == (gone,)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("threads=1,2", ("threads", (1, 2))),
        ("enable-prefix-caching=on,off", ("enable_prefix_caching", (True, False))),
        ("kv_cache_dtype=q8_0", ("kv_cache_dtype", ("q8_0",))),
        ("gpu_memory_utilization=0.8", ("gpu_memory_utilization", (0.8,))),
    ],
)
def test_knobs_are_read_in_the_types_of_their_options(text, found):
    assert parse_knob(text) == found


def test_two_ends_make_a_range_that_is_searched():
    assert parse_knob("threads=1:8") == ("threads", Range(low=1, high=8, whole=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("threads=8:1", "is no range"),
        ("thread=1", "no knob 'thread'"),
        ("threads", "names no values"),
        ("threads=many", "no value of it"),
    ],
)
def test_a_wrong_knob_is_refused(text, message):
    with pytest.raises(UsageError, match=message):
        parse_knob(text)
