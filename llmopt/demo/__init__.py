"""What travels with llmopt: a small trained model, its texts and the demo's recipe."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).resolve().parent
MODEL = HERE / "model"
HELD_OUT_TEXT = HERE / "texts" / "heldout.txt"
CALIBRATION_TEXT = HERE / "texts" / "calibration.txt"

NAMES = ("builtin", "demo")  # of the model, wherever one may be named


def model_at(name: str | Path) -> Path:
    """The bundled model by its name, else the folder or file of that name."""
    return MODEL if str(name) in NAMES else Path(name).expanduser()


def recipe(name: str = "demo") -> Path:
    """A recipe of that name: out of the wheel, or of the repository's ``recipes/`` in a checkout."""
    packaged = HERE / "recipes" / f"{name}.yaml"
    return packaged if packaged.exists() else HERE.parents[1] / "recipes" / f"{name}.yaml"
