"""The proof of an artifact stands for what is served of it, and for nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmopt import recipe
from llmopt.cli.shell import reporter
from llmopt.core.domain import ServeOptions
from llmopt.pipeline import plans

GATE = Path(__file__).parents[2] / "recipes" / "gate.yaml"
PROOF = {"kl_mean": 0.0, "top1_agreement": 1.0}


def quality_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> dict[str, Any] | None:
    monkeypatch.setattr(plans, "prove", lambda *arguments, **more: PROOF)
    served = ServeOptions(backend="llamacpp", **options)
    _, quality = plans.proven_case(recipe.load(GATE), "bf16", served, tmp_path, reporter(quiet=True), tmp_path)
    return quality


@pytest.mark.parametrize("options", [{}, {"kv_cache_dtype": "q4_0"}, {"extra_args": ("--no-mmap",)}])
def test_the_artifact_as_it_is_and_its_own_cache_are_proven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    assert quality_of(tmp_path, monkeypatch, **options) == PROOF


@pytest.mark.parametrize("options", [{"extra_args": ("-ctk", "q4_0")}, {"lora_modules": ("sql=/a.gguf",)}])
def test_what_an_engine_makes_of_it_by_itself_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    assert quality_of(tmp_path, monkeypatch, **options) is None
