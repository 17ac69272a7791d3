import pytest

from llmopt import serve
from llmopt.core.domain import Quantization
from llmopt.core.errors import UsageError

PLAIN = Quantization(name="bf16", method="none", format="plain", bits=16)
GGUF = Quantization(name="gguf-q8_0", method="gguf", format="gguf", bits=8)
NF4 = Quantization(name="nf4-dq", method="bitsandbytes", format="bitsandbytes", bits=4)


@pytest.mark.parametrize("name", serve.BACKENDS)
def test_every_line_of_the_table_is_a_backend_of_that_name(name):
    assert serve.backend(name).name == name


def test_an_unknown_backend_names_the_nearest():
    with pytest.raises(UsageError, match="unknown backend 'llama'") as caught:
        serve.backend("llama")
    assert "llamacpp" in caught.value.hint


@pytest.mark.parametrize(("quantization", "name"), [(PLAIN, "hf"), (NF4, "hf"), (GGUF, "llamacpp")])
def test_the_first_engine_that_loads_a_quantization(quantization, name):
    assert serve.first_able(quantization) == name


def test_an_engine_that_cannot_load_a_quantization_names_one_that_can():
    with pytest.raises(UsageError, match="llamacpp does not load nf4-dq") as caught:
        serve.require_loadable("llamacpp", NF4)
    assert caught.value.hint == "--backend hf"


def test_the_fake_is_never_chosen_by_itself():
    strange = Quantization(name="x", method="x", format="unheard-of", bits=1)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no engine here loads x"):
        serve.first_able(strange)


def test_an_adapter_that_is_no_gguf_is_explained():
    """Recorded: xllamacpp 2026.10.11549."""
    from llmopt.serve import backend, failures

    lines = [
        "0.00.094.200 E gguf_init_from_reader: invalid magic characters: 'xxxx', expected 'GGUF'",
        "0.00.096.111 E llama_adapter_lora_init_from_file_ptr: failed to apply lora adapter: failed to load lora adapter from file",
        "0.00.096.135 E cmn  common_init_: failed to load lora adapter '/a/adapter_model.safetensors'",
        "0.00.096.166 E srv    load_model: failed to create_context with model '/m/model.gguf'",
    ]
    cause, remedy = failures.explain(backend("llamacpp").failures, lines)
    assert cause == "an adapter is no GGUF file, or not of this model: /a/adapter_model.safetensors"
    assert "convert_lora_to_gguf.py" in remedy
