import importlib.util

import pytest

from llmopt.core.errors import UsageError
from llmopt.quantize import METHODS, method, names, quantization


@pytest.mark.parametrize("name", METHODS)
def test_every_line_of_the_table_names_itself_and_a_module(name):
    assert method(name).quantization.name == name
    module, _, function = method(name).function.partition(":")
    assert importlib.util.find_spec(module)
    assert function == "run"


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
