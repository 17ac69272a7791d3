"""Artifacts that ``llmopt quantize`` made, beside the size that ``llmopt estimate`` gives from the base's config alone.

python benchmarks/estimate/artifacts.py FOLDER ...     (folders that hold a llmopt.json, at any depth)
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

from llmopt.core.formats import layout
from llmopt.estimate.source import open_folder
from llmopt.estimate.weights import weights_of


def main(folders: list[str]) -> None:
    errors: dict[str, list[float]] = {}
    for manifest in sorted(file for folder in folders for file in Path(folder).rglob("llmopt.json")):
        try:
            artifact = json.loads(manifest.read_text())["artifact"]
            base, quantization = Path(artifact["base"]), artifact["quantization"]
            size = sum(p.stat().st_size for kind in ("*.safetensors", "*.gguf") for p in manifest.parent.glob(kind))
        except (OSError, ValueError, KeyError):
            continue
        if quantization["format"] == "in-memory" or not size or not (base / "config.json").exists():
            continue
        wanted = layout(
            quantization["name"], None if quantization["format"] == "bitsandbytes" else quantization["format"]
        )
        found = weights_of(open_folder(base).shape, wanted).file_bytes
        error = found / size - 1
        errors.setdefault(quantization["format"], []).append(error)
        print(
            f"{quantization['name']:<16} {quantization['format']:<20} {found:>14,} {size:>14,} {error:+7.2%}  {manifest.parent}"
        )
    for kind, values in errors.items():
        sizes = sorted(map(abs, values))
        print(f"{kind}: {len(values)} artifacts, median error {statistics.median(sizes):.2%}, worst {sizes[-1]:.2%}")


if __name__ == "__main__":
    main(sys.argv[1:])
