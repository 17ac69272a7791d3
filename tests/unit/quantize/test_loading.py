import pytest

from llmopt.core.errors import UsageError
from llmopt.core.loading import engines, entries, seen
from llmopt.quantize import METHODS, method
from llmopt.quantize.loading import able, choose_route


def test_entries_name_what_there_is():
    formats = {route.format for m in METHODS.values() for route in m.routes} | {"plain"}
    for entry in entries():
        assert set(entry.formats) <= formats
        assert entry.device in ("cpu", "cuda", "any")
        assert entry.seen in ("tried", "documented")
        assert entry.loads or entry.note
        assert bool(entry.version) == (entry.seen == "tried")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_an_engine_on_a_machine_without_a_gpu(name):
    assert able(method(name), "cpu")


def test_without_an_engine_the_first_layout_is_taken():
    assert choose_route(method("gptq-int4-g128"), None, None, "cpu")[0].format == "compressed-tensors"


def test_an_engine_chooses_the_layout_that_it_loads():
    route, entry = choose_route(method("awq-int4-g128"), None, "lmdeploy", "cuda")
    assert route.format == "awq"
    assert entry.evidence == "documented for lmdeploy, not tried by us"


def test_a_layout_that_was_asked_for_stays():
    assert choose_route(method("gptq-int4-g128"), "gptq", "vllm", "cpu")[0].format == "gptq"


@pytest.mark.parametrize(
    ("name", "engine", "word"),
    [("gptq-int8", "vllm", "w8a8-int8"), ("gguf-q8_0", "vllm", "llamacpp"), ("nf4", "llamacpp", "GGUF"),
     ("gguf-q4_k_m", "hf", "llamacpp"), ("dynamic-int8", "vllm", "transformers")],
)  # fmt: skip
def test_what_an_engine_is_known_not_to_load_is_refused_with_the_reason(name, engine, word):
    with pytest.raises(UsageError, match=f"{engine} does not load {name} on this machine") as caught:
        choose_route(method(name), None, engine, "cpu")
    assert word in caught.value.message
    assert "--for" in caught.value.hint


def test_a_combination_that_nobody_saw_is_made_without_evidence():
    route, entry = choose_route(method("gptq-int4-g128"), None, "tgi", "cpu")
    assert (route.format, entry) == ("compressed-tensors", None)


def test_an_unknown_engine():
    with pytest.raises(UsageError, match="unknown backend 'vlm'") as caught:
        choose_route(method("fp8"), None, "vlm", "cpu")
    assert "vllm" in caught.value.hint


def test_exceptions_come_before_the_rule():
    assert seen("vllm", "cpu", method("gptq-int8").quantization).loads is False
    assert seen("vllm", "cuda", method("gptq-int8").quantization).loads is True
    assert "vllm" in engines()
