"""Code that lies in a model's folder is never run, whatever a library would do with it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from llmopt import demo
from llmopt.core import environments
from llmopt.quantize import METHODS

pytestmark = pytest.mark.engine
CODE = """
from pathlib import Path
from transformers import PreTrainedTokenizerFast
(Path({folder!r}) / "ran").touch()
class Own(PreTrainedTokenizerFast):
    pass
"""
# Some architectures of the converter read their tokenizer like this; DreamModel is one.
CONVERT = """
import sys
from pathlib import Path
from llmopt.core.environments import CONVERTER_FOLDER
from llmopt.quantize import gguf
sys.path.insert(0, str(Path(sys.prefix) / CONVERTER_FOLDER))
gguf.convert(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_the_converter_runs_no_code_of_the_model(tmp_path: Path) -> None:
    model = shutil.copytree(demo.MODEL, tmp_path / "model")
    config = json.loads((model / "config.json").read_text()) | {"architectures": ["DreamModel"]}
    (model / "config.json").write_text(json.dumps(config))
    words = json.loads((model / "tokenizer_config.json").read_text())
    words |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "tokenization_own.Own"]}}
    (model / "tokenizer_config.json").write_text(json.dumps(words))
    (model / "tokenization_own.py").write_text(CODE.format(folder=str(tmp_path)))
    environment = environments.find(METHODS["gguf-q8_0"].needs)
    told = subprocess.run(
        [str(environment.python), "-c", CONVERT, str(model), str(tmp_path / "out.gguf")],
        capture_output=True, text=True, timeout=200, env={"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert (tmp_path / "out.gguf").exists() or "brings code of its own" in told.stderr
    assert not (tmp_path / "ran").exists()
