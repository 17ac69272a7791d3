"""AWQ's grid is tried on some of the calibration samples, evenly over all of them."""

from __future__ import annotations

from typing import Any

import pytest

from llmopt.quantize import METHODS
from llmopt.quantize.llmcompressor import recipe

torch = pytest.importorskip("torch")
awq = pytest.importorskip("llmcompressor.modifiers.transform")
pipelines = pytest.importorskip("llmcompressor.pipelines.cache")


class Attention(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Gives its output in a tuple, as transformers' do."""

    def forward(self, number: Any) -> Any:
        return number, None


def tried(samples: int, settings: dict[str, Any]) -> list[int]:
    (modifier, _), layer, cache = recipe(settings), Attention(), pipelines.IntermediatesCache(None, None)
    for number in range(samples):
        cache.append({"number": torch.tensor(number)})
    modifier._parent_args_cache[layer] = cache
    return [int(output) for output in modifier._run_samples(layer)]


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(awq.AWQModifier, "_run_samples", awq.AWQModifier._run_samples)  # as it was, at the end
    return METHODS["awq-int4-g128"].route("compressed-tensors").settings


@pytest.mark.parametrize(("samples", "step"), [(1, 1), (16, 1), (17, 2), (31, 2), (64, 4), (65, 5)])
def test_sixteen_of_the_samples_at_most(settings: dict[str, Any], samples: int, step: int) -> None:
    found = tried(samples, settings)
    assert found == list(range(0, samples, step))
    assert len(found) <= 16


def test_without_that_setting_on_all(settings: dict[str, Any]) -> None:
    own = {name: value for name, value in settings.items() if name != "grid_samples"}
    assert tried(64, own) == list(range(64))
