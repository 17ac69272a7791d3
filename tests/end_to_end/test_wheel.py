"""What a wheel must carry so that ``llmopt demo`` runs without a checkout."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_wheel_carries_the_model_its_texts_and_the_recipe(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(argv, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("llmopt-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    model = {"config.json", "model.safetensors", "tokenizer.json", "README.md", "training.json"}
    assert {f"llmopt/demo/model/{name}" for name in model} <= names
    assert {
        "llmopt/demo/texts/heldout.txt",
        "llmopt/demo/texts/calibration.txt",
        "llmopt/demo/recipes/demo.yaml",
        "llmopt/report/templates/page.html",
    } <= names
    assert not [name for name in names if "checkpoint" in name or "__pycache__" in name]
    assert wheel.stat().st_size < 25 << 20
