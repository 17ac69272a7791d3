"""Real artifacts, corrupted one way each: every one is refused with one clear line."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmopt import demo
from llmopt.core import environments
from llmopt.core.artifacts import MANIFEST, open_artifact
from llmopt.core.domain import Artifact
from llmopt.core.errors import MissingEnvironment, ModelError
from llmopt.core.weights import data_start, safetensors_header
from llmopt.pipeline.proving import ProofFailed, ProofLimits, QualityText, prove, quality_file
from llmopt.quality import ENGINES, needs
from llmopt.quality.declared import foreign_artifact
from llmopt.report.progress import Reporter
from tests.contract.conftest import PROOF_TOKENS, Workshop

pytestmark = pytest.mark.engine
CHECKPOINT, GGUF = "gptq-int4-g128", "gguf-q4_k_m"
TEXT = QualityText(tokens=PROOF_TOKENS)
WEIGHTS = "model.safetensors"


def copied(workshop: Workshop, name: str, folder: Path) -> Path:
    """An artifact of one's own to break, without the figures of its proof."""
    shutil.copytree(workshop.artifact(name).path, folder)
    (folder / "quality.json").unlink(missing_ok=True)
    return folder


def refused(artifact: Artifact | Path, match: str, log_folder: Path, **how: Any) -> ModelError:
    """It is refused when it is opened or when it is proven, in one line with a next step."""

    def use() -> None:
        opened = open_artifact(artifact) if isinstance(artifact, Path) else artifact
        prove(opened, TEXT, Reporter(quiet=True), log_folder=log_folder, **how)

    with pytest.raises(ModelError, match=match) as caught:
        use()
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value


def as_foreign(folder: Path) -> Artifact:
    """The same files without our manifest: what stands between a broken file and its user is the proof alone."""
    (folder / MANIFEST).unlink(missing_ok=True)
    return foreign_artifact(folder, demo.MODEL)


def overwrite(file: Path, chosen: Callable[[str], bool], data: Callable[[int], bytes]) -> None:
    """New bytes of the same length for the chosen tensors."""
    start = data_start(file)
    with file.open("r+b") as stream:
        for name, entry in safetensors_header(file).items():
            if chosen(name):
                first, last = entry["data_offsets"]
                stream.seek(start + first)
                stream.write(data(last - first))


def edit(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_a_truncated_shard(workshop: Workshop, tmp_path: Path) -> None:
    folder = copied(workshop, CHECKPOINT, tmp_path / "out")
    os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size - 100)
    refused(folder, "are not those of its llmopt.json", tmp_path)
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        as_foreign(folder)


def test_garbage_of_the_right_size(workshop: Workshop, tmp_path: Path) -> None:
    folder = copied(workshop, CHECKPOINT, tmp_path / "out")
    overwrite(folder / WEIGHTS, lambda name: name.endswith("weight_packed"), os.urandom)
    refused(folder, "are not those of its llmopt.json", tmp_path)
    failure = refused(as_foreign(folder), "is broken: its mean KL", tmp_path)
    assert isinstance(failure, ProofFailed)
    assert failure.figures["kl_mean"] > 2
    assert failure.figures["structure"]["quantized_layers"] > 0


def test_scales_that_are_no_numbers(workshop: Workshop, tmp_path: Path) -> None:
    folder = copied(workshop, CHECKPOINT, tmp_path / "out")
    overwrite(folder / WEIGHTS, lambda name: name.endswith("weight_scale"), lambda size: b"\xff\x7f" * (size // 2))
    refused(as_foreign(folder), "NaN or infinite scales", tmp_path)


def test_a_wrong_index(workshop: Workshop, tmp_path: Path) -> None:
    folder = copied(workshop, CHECKPOINT, tmp_path / "out")
    places = {"weight_map": {"model.embed_tokens.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(places))
    refused(folder, r"names model-00002-of-00002.safetensors, which is not there", tmp_path)


def test_another_models_tokenizer(workshop: Workshop, tmp_path: Path) -> None:
    folder = copied(workshop, CHECKPOINT, tmp_path / "out")

    def swap(content: dict[str, Any]) -> None:
        vocabulary = content["model"]["vocab"]
        longest = sorted(vocabulary, key=lambda word: -len(word))[:200]
        for one, other in zip(longest[::2], longest[1::2], strict=True):
            vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]

    edit(folder / "tokenizer.json", swap)
    refused(folder, "they part at token", tmp_path)


def test_no_quantization_config(workshop: Workshop, tmp_path: Path) -> None:
    folder = copied(workshop, CHECKPOINT, tmp_path / "out")
    edit(folder / "config.json", lambda config: config.pop("quantization_config"))
    refused(folder, "has no quantization_config", tmp_path)


def test_another_quantization_config(workshop: Workshop, tmp_path: Path) -> None:
    folder = copied(workshop, CHECKPOINT, tmp_path / "out")

    def widen(config: dict[str, Any]) -> None:
        for group in config["quantization_config"]["config_groups"].values():
            group["weights"]["num_bits"] = 8

    edit(folder / "config.json", widen)
    refused(folder, "its quantization_config says bits 8", tmp_path)


@pytest.mark.parametrize("name", ["awq-int4-g128", "nf4"])
def test_a_relabelled_manifest_is_not_believed(workshop: Workshop, tmp_path: Path, name: str) -> None:
    folder = copied(workshop, CHECKPOINT, tmp_path / "out")
    edit(folder / MANIFEST, lambda manifest: manifest["artifact"]["quantization"].update(name=name))
    refused(folder, "was edited", tmp_path)


def test_nor_is_a_relabelled_gguf(workshop: Workshop, tmp_path: Path) -> None:
    made = open_artifact(copied(workshop, GGUF, tmp_path / "out"))
    refused(replace(made, quantization=replace(made.quantization, name="gguf-q8_0")), "its header says", tmp_path)


def test_a_gguf_of_zeros(workshop: Workshop, tmp_path: Path) -> None:
    folder = copied(workshop, GGUF, tmp_path / "out")
    with (folder / "model.gguf").open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(size // 2)
        file.write(bytes(size - size // 2))
    refused(as_foreign(folder), "nothing but zero scales", tmp_path)


def test_the_proof_says_how_it_was_made(workshop: Workshop, tmp_path: Path) -> None:
    found = prove(workshop.artifact(GGUF), TEXT, Reporter(quiet=True), log_folder=tmp_path)
    assert (found["engine"], found["kv_cache_dtype"]) == ("llamacpp", "auto")
    assert found["reference"].startswith("transformers ")
    assert found["tokenizer"]["same"]
    assert found["structure"]["quantized_layers"] == 56


def test_a_quantized_kv_cache_is_a_proof_of_its_own_and_costs_closeness(workshop: Workshop, tmp_path: Path) -> None:
    artifact = open_artifact(copied(workshop, "gguf-q8_0", tmp_path / "out"))
    kl = {
        dtype: prove(artifact, TEXT, Reporter(quiet=True), log_folder=tmp_path, kv_cache_dtype=dtype)["kl_mean"]
        for dtype in ("auto", "q4_0")
    }
    assert kl["q4_0"] > 2 * kl["auto"]


def test_a_damaged_quality_file_is_said_and_measured_again(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = open_artifact(copied(workshop, GGUF, tmp_path / "out"))
    quality_file(artifact).write_text('{"key"')
    found = prove(artifact, TEXT, Reporter(), log_folder=tmp_path)
    assert "quality.json is damaged: measured again" in capsys.readouterr().err
    assert json.loads(quality_file(artifact).read_text())["quality"] == found


def test_limits_refuse_with_the_figures(workshop: Workshop, tmp_path: Path) -> None:
    failure = refused(workshop.artifact(GGUF), "above 1e-06", tmp_path, limits=ProofLimits(max_kl=1e-6))
    assert isinstance(failure, ProofFailed)
    assert 0 < failure.figures["kl_mean"] < 0.2


def test_vllm_comes_to_the_same_figures_as_transformers(workshop: Workshop, tmp_path: Path) -> None:
    artifact = open_artifact(copied(workshop, CHECKPOINT, tmp_path / "out"))
    try:
        environments.find(needs(artifact.quantization, ENGINES["vllm"]))
    except MissingEnvironment as error:
        pytest.skip(f"vLLM is not here: {error.hint}")
    found = {
        engine: prove(artifact, TEXT, Reporter(quiet=True), log_folder=tmp_path, engine=engine)
        for engine in ("hf", "vllm")
    }
    assert found["vllm"]["reference"].startswith("vllm ")
    assert found["vllm"]["kl_mean"] == pytest.approx(found["hf"]["kl_mean"], rel=0.1)
    assert found["vllm"]["top1_agreement"] == pytest.approx(found["hf"]["top1_agreement"], abs=0.02)
