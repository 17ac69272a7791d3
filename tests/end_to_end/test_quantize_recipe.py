"""The repository's own recipe of quantizations, played from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import llmopt
from llmopt import recipe
from llmopt.core.artifacts import open_artifact

pytestmark = pytest.mark.engine
RECIPE = Path(llmopt.__file__).parents[1] / "recipes" / "quantizations.yaml"


def play(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "llmopt", "quantize", "--recipe", str(RECIPE), "-o", str(out), *options]
    return subprocess.run(argv, capture_output=True, text=True, timeout=280, check=False)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipe") / "out"


def test_every_quantization_is_made_and_proven(out: Path) -> None:
    told = play(out, "--json")
    assert told.returncode == 0, told.stderr
    documents = json.loads(told.stdout)
    wanted = [q.name for q in recipe.load_quantizations(RECIPE).quantizations]
    assert [d["artifact"]["quantization"]["name"] for d in documents] == wanted
    for document in documents:
        artifact = open_artifact(document["artifact"]["path"])
        assert Path(artifact.path).parent == out
        assert 0 < document["quality"]["kl_mean"] < 0.1
        assert (Path(artifact.path) / "README.md").read_text().startswith("---\nbase_model: llmopt demo model\n")


def test_the_second_time_everything_is_there(out: Path) -> None:
    started = time.monotonic()
    told = play(out)
    assert told.returncode == 0, told.stderr
    assert told.stdout.count("(already there)") == len(recipe.load_quantizations(RECIPE).quantizations)
    assert time.monotonic() - started < 20


def test_types_of_one_model_share_its_conversion_and_only_the_first_is_remembered(tmp_path: Path) -> None:
    recipe = tmp_path / "two.yaml"
    recipe.write_text("name: two\nmodel: builtin\nquality: {tokens: 1536}\nquantizations: [gguf-q8_0, gguf-q4_0]\n")
    argv = [sys.executable, "-m", "llmopt", "quantize", "--recipe", str(recipe), "-o", str(tmp_path / "out")]
    home = tmp_path / "home"
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=200, check=False, env=os.environ | {"LLMOPT_HOME": str(home)}
    )
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "out").glob("shared-*"))
    history = (home / "quantize-history.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in history] == ["gguf-q8_0"]
    logs = tmp_path / "out" / "logs"
    assert "hf-to-gguf" in (logs / "quantize-gguf-q8_0.log").read_text()
    assert "hf-to-gguf" not in (logs / "quantize-gguf-q4_0.log").read_text()
