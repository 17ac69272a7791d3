import pytest

from llmopt.core.errors import UsageError
from llmopt.core.formats import layout
from llmopt.quantize import METHODS, UNQUANTIZED


@pytest.mark.parametrize("name", [*METHODS, *UNQUANTIZED])
def test_every_name_of_the_table_of_methods_is_known(name):
    assert layout(name).bits > 0


def test_a_group_that_is_not_named_is_the_usual_one():
    assert layout("gptq-int4") == layout("gptq-int4-g128")
    assert layout("gptq-int4-g32").group == 32


@pytest.mark.parametrize("spelled", ["Q4_K_M", "q4_k_m", "gguf-q4_k_m", "GGUF-Q4-K-M"])
def test_a_gguf_type_may_be_spelled_as_llama_cpp_does(spelled):
    assert layout(spelled).name == "gguf-q4_k_m"


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("gptq-int5", "gptq-int"), ("nf5", "nf4"), ("gguf-q4_k_x", "gguf-q4_k"), ("gptq-int4-g0", "gptq")],
)
def test_an_unknown_name_gets_the_nearest(wrong, near):
    with pytest.raises(UsageError, match="unknown quantization") as caught:
        layout(wrong)
    assert near in caught.value.hint


def test_a_layout_that_a_method_is_not_stored_in_is_refused():
    with pytest.raises(UsageError, match="not stored"):
        layout("nf4", "gptq")


@pytest.mark.parametrize(
    ("name", "bits"), [("gptq-int4-g128", 4 + 20 / 128), ("w4a16", 4 + 16 / 128), ("nf4", 4.5), ("fp8", 8 + 16 / 4096)]
)
def test_bits_count_scales_and_zeros(name, bits):
    assert layout(name).linear_bits(4096, rows=1 << 40) == pytest.approx(bits)
