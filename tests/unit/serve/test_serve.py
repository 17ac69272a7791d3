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
