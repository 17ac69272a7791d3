import pytest

from llmopt.core.errors import UsageError
from llmopt.core.gguf_types import BITS, FALLBACK, FILE_TYPES, SMALL_BLOCKS, written_type
from llmopt.quantize import METHODS, method, names, quantization

PROMISED = [
    "gptq-int4-g128", "gptq-int4-g32", "gptq-int8", "awq-int4-g128", "autoround-int4", "nf4", "nf4-dq", "int8",
    "w8a8-int8", "w4a16", "fp8", "dynamic-int8", "gguf-q4_k_m", "gguf-q8_0", "gguf-iq4_xs",
]  # fmt: skip


@pytest.mark.parametrize("name", PROMISED)
def test_what_was_promised_is_there(name):
    assert method(name).name == name


@pytest.mark.parametrize("name", METHODS)
def test_every_route_names_a_module_of_ours_and_its_own_layout(name):
    routes = method(name).routes
    for route in routes:
        module, _, function = route.function.partition(":")
        assert module.startswith("llmopt.quantize.")
        assert function == "run"
    assert len({route.format for route in routes}) == len(routes)


def test_an_unknown_quantization_names_the_nearest():
    with pytest.raises(UsageError, match="unknown quantization 'gptq-int4'") as caught:
        method("gptq-int4")
    assert "gptq-int4-g128" in caught.value.hint


def test_the_base_is_nothing_to_make():
    with pytest.raises(UsageError, match="nothing to quantize"):
        method("bf16")
    assert quantization("bf16").method == "none"


def test_all_names_are_known():
    assert [quantization(name).name for name in names()] == names()


def test_a_layout_can_be_chosen():
    assert quantization("gptq-int4-g128").format == "compressed-tensors"
    assert quantization("gptq-int4-g128", "gptq").format == "gptq"


def test_a_layout_that_there_is_not_names_those_that_there_are():
    with pytest.raises(UsageError, match="not made in the layout 'gguf'") as caught:
        quantization("awq-int4-g128", "gguf")
    assert caught.value.hint == "--format compressed-tensors or awq"


def test_numbers_of_file_types_are_llama_cpps_own_and_differ():
    numbers = [t.number for t in FILE_TYPES.values()]
    assert len(set(numbers)) == len(numbers)
    assert (FILE_TYPES["q4_k_m"].number, FILE_TYPES["q8_0"].number) == (15, 7)


@pytest.mark.parametrize("kind", FILE_TYPES)
def test_the_bits_of_every_file_type_are_known(kind):
    found = FILE_TYPES[kind]
    assert found.average >= BITS[found.main]


@pytest.mark.parametrize("kind", FALLBACK)
def test_a_row_that_does_not_divide_gets_a_type_that_fits(kind):
    assert written_type(kind, 512) == kind
    assert written_type(kind, 896) == FALLBACK[kind]
    assert FALLBACK[kind] in SMALL_BLOCKS
    assert written_type(kind, 100) == "F16"
