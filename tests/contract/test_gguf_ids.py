"""The converted tokenizer is read by llama.cpp itself, beside the quantizer."""

import json
import subprocess
from pathlib import Path

import pytest

from llmopt import demo
from llmopt.core.errors import ModelError, WorkerError
from llmopt.quantize.gguf import let_read, require_same_ids, started_reading
from tests.contract.conftest import Workshop

pytestmark = pytest.mark.engine


def reading(model: Path, workshop: Workshop) -> "subprocess.Popen[str]":
    file = Path(workshop.artifact("gguf-q8_0").path) / "model.gguf"
    return started_reading(model, file, demo.HELD_OUT_TEXT)


def test_the_tokenizer_of_the_model_is_read_alike(workshop: Workshop) -> None:
    reader = reading(demo.MODEL, workshop)
    let_read(demo.MODEL, reader)
    require_same_ids(demo.MODEL, reader)


def test_another_tokenizer_is_refused_with_the_place(workshop: Workshop, tmp_path: Path) -> None:
    tokenizer = json.loads((demo.MODEL / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["e"], vocabulary["t"] = vocabulary["t"], vocabulary["e"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match=r"part at token \d+$"):
        require_same_ids(tmp_path, reading(tmp_path, workshop))


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "base.gguf").write_bytes(b"GGUF")
    with pytest.raises(WorkerError, match="could not read the tokenizer"):
        require_same_ids(demo.MODEL, started_reading(demo.MODEL, tmp_path / "base.gguf", demo.HELD_OUT_TEXT))


def test_nothing_is_said_of_a_file_that_never_came(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(WorkerError):
        require_same_ids(demo.MODEL, started_reading(demo.MODEL, tmp_path / "base.gguf", demo.HELD_OUT_TEXT))
    assert capfd.readouterr().err == ""  # the log ends with what ended the converter


def test_a_reader_that_has_ended_is_noticed_before_anything_is_quantized(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    reader = started_reading(tmp_path, tmp_path / "base.gguf", demo.HELD_OUT_TEXT)
    reader.wait(60)
    with pytest.raises(WorkerError, match="could not read the tokenizer"):
        let_read(tmp_path, reader)
