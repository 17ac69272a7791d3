"""What counts as unquantized, and so as its own reference."""

from __future__ import annotations

import pytest

from llmopt.gate.quality import unquantized


@pytest.mark.parametrize(
    ("method", "serve", "is_it"),
    [
        ("none", {}, True),
        ("none", {"kv_cache_dtype": "auto", "extra_args": [], "lora_modules": ()}, True),
        ("none", {"kv_cache_dtype": "fp8"}, False),
        ("none", {"extra_args": ["--quantization", "fp8"]}, False),
        ("none", {"lora_modules": ["style=adapter"]}, False),
        ("gptq", {}, False),
        (None, {}, False),
    ],
)
def test_unquantized_is_what_nothing_that_serves_it_can_change(method: str | None, serve: dict, is_it: bool) -> None:  # type: ignore[type-arg]
    assert unquantized(method, serve) is is_it
