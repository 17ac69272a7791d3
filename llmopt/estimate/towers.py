"""What lies beside a language model: towers that see and hear."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmopt.estimate.shape import LARGEST, Shape, Tensor

TOWERS = ("vision_config", "audio_config", "visual", "vision_tower")
GATED = ("qwen2_5_vl", "qwen2_5_omni_vision_encoder", "pixtral")  # types whose MLP has three matrices


def with_vision(shape: Shape, config: dict[str, Any]) -> Shape:
    """With the vision tower where its config is a plain transformer's, else with a word that it is not counted."""
    towers = [name for name in TOWERS if isinstance(config.get(name), dict)]
    if not towers:
        return shape
    notes, found = list(shape.notes), list(shape.tensors)
    for name in towers:
        tower = config[name]
        if "model_type" not in tower:  # Qwen2.5-VL's, as it is published: the outer level alone tells the type
            tower = tower | {"model_type": config.get("model_type")}
        size = tower_parameters(tower)
        if size is None:
            notes.append(f"{name} is not counted: its parts are not known here")
            continue
        found.append(Tensor(part=name, role="vision", rows=1, columns=size))
        projector = "" if has_merger(tower) else ", projector left out"
        notes.append(f"{name}: about {size / 1e6:,.0f} M parameters{projector}")
    return replace(shape, tensors=tuple(found), notes=tuple(notes))


def tower_parameters(tower: dict[str, Any]) -> int | None:
    """Of a ViT with the usual names: attention, its MLP, two norms; ``None`` where a number is missing or odd."""
    # Qwen2-VL names the language model's width hidden_size and its own embed_dim.
    hidden, layers = (
        size(tower, "embed_dim", "hidden_size", "width"),
        size(tower, "num_hidden_layers", "depth", "layers"),
    )
    inner, patch = size(tower, "intermediate_size"), size(tower, "patch_size", "spatial_patch_size")
    ratio = tower.get("mlp_ratio")
    if inner is None and hidden is not None and isinstance(ratio, (int, float)) and 0 < ratio < 100:
        inner = int(hidden * ratio)
    if hidden is None or layers is None or inner is None or patch is None:
        return None
    places = ((size(tower, "image_size") or 0) // patch) ** 2
    matrices = 3 if tower.get("model_type") in GATED else 2
    layer = 4 * hidden * (hidden + 1) + matrices * (hidden * inner + inner) + hidden - inner + 4 * hidden
    found = layers * layer + hidden * (3 * patch * patch + 1) + places * hidden + 2 * hidden
    return found + merger_parameters(tower, hidden)


def has_merger(tower: dict[str, Any]) -> bool:
    return size(tower, "spatial_merge_size") is not None and size(tower, "out_hidden_size", "hidden_size") is not None


def merger_parameters(tower: dict[str, Any], hidden: int) -> int:
    """Of Qwen's: it leads squares of patches to the language model's width, in Qwen3-VL for some of the layers too."""
    side, out = size(tower, "spatial_merge_size"), size(tower, "out_hidden_size", "hidden_size")
    if side is None or out is None:
        return 0
    merged, deep = hidden * side * side, tower.get("deepstack_visual_indexes")
    count = 1 + (len(deep) if isinstance(deep, list) else 0)
    return count * (merged * (merged + 1) + out * (merged + 1))


def size(tower: dict[str, Any], *names: str) -> int | None:
    """The first of these that is a whole number of a size that something has."""
    for name in names:
        value = tower.get(name)
        if (
            isinstance(value, (int, float))
            and not isinstance(value, bool)
            and 0 < value < LARGEST
            and value == int(value)
        ):
            return int(value)
    return None
