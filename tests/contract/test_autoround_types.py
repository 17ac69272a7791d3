"""What AutoRound writes on a processor without bf16 is as narrow as its base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from llmopt.quantize.autoround import narrow  # noqa: E402


def test_what_was_loaded_in_16_bits_is_written_so_again(tmp_path: Path) -> None:
    written = {
        "embed": torch.tensor([1.0, 2.5]),
        "scales": torch.ones(3),
        "norm": torch.ones(2),
        "gate": torch.tensor([1.0, 1.0 + 2**-20]),
        "q": torch.ones(2).int(),
    }
    save_file(written, tmp_path / "model-1.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 44}, "weight_map": {}}))
    narrow(tmp_path, {"embed": "BF16", "norm": "F32", "gate": "F32"})
    found = load_file(tmp_path / "model-1.safetensors")
    assert {name: str(t.dtype) for name, t in found.items()} == {
        "embed": "torch.bfloat16",
        "scales": "torch.float32",  # the library's own
        "norm": "torch.bfloat16",  # as it was loaded, although the base has 32 bits
        "gate": "torch.float32",  # which the library kept
        "q": "torch.int32",
    }
    assert found["embed"].tolist() == [1.0, 2.5]
    assert json.loads(index.read_text())["metadata"]["total_size"] == 36
    assert not list(tmp_path.glob("*.partial"))


def test_nothing_is_written_where_nothing_is_too_wide(tmp_path: Path) -> None:
    save_file({"embed": torch.ones(2).bfloat16()}, tmp_path / "model.safetensors")
    before = (tmp_path / "model.safetensors").stat().st_ino
    narrow(tmp_path, {"embed": "BF16"})
    assert (tmp_path / "model.safetensors").stat().st_ino == before
