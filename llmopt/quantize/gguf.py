"""GGUF: llama.cpp's official converter, then its own quantizer (both run in a worker)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from llmopt.core.environments import CONVERTER_FOLDER
from llmopt.core.errors import ModelError, UsageError, WorkerError, nearest

# The split of a tokenizer.json → llama.cpp's name for it. The converter knows published
# tokenizers by a hash over their whole vocabulary, so it refuses a tokenizer of one's own
# although its split is a known one.
CHECKED_CHARACTERS = 20_000
KNOWN_SPLITS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen2",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "llama-bpe",
}


def run(model: str, out: str, settings: dict[str, Any], calibration: str) -> dict[str, Any]:
    """Convert ``model`` to GGUF in bf16, then quantize it to ``settings["type"]`` as ``out``/model.gguf."""
    from llmopt.quantize.checks import require_causal_lm

    require_causal_lm(model)
    sys.path.insert(0, str(Path(sys.prefix) / CONVERTER_FOLDER))  # before the registry's older gguf
    number = file_type(settings["type"])
    whole, result = Path(out) / "base.gguf", Path(out) / "model.gguf"
    convert(Path(model), whole)
    quantize(whole, result, number)
    whole.unlink()
    require_same_ids(Path(model), result, Path(calibration))
    types, weight_bytes = tensors(result)
    asked = settings["type"].split("_")[0]
    return {"weight_bytes": weight_bytes, "tensor_types": types, "fallback_types": fallbacks(types, asked)}


def file_type(name: str) -> int:
    """llama.cpp's number of a file type; raises UsageError with the nearest names."""
    from gguf.constants import LlamaFileType

    known = {t.name.removeprefix("MOSTLY_"): int(t) for t in LlamaFileType if t.name.startswith("MOSTLY_")}
    if name not in known:
        raise UsageError(f"llama.cpp has no file type {name}", hint=nearest(name, list(known)))
    return known[name]


def convert(model: Path, out: Path) -> None:
    """Run the official converter in this process, with our word for splits that it does not know."""
    import runpy

    from conversion.base import TextModel

    recognise = TextModel.get_vocab_base_pre

    def recognise_or_name(self: Any, tokenizer: Any) -> str:
        try:
            return str(recognise(self, tokenizer))
        except NotImplementedError:
            return named_split(model)

    TextModel.get_vocab_base_pre = recognise_or_name
    script = Path(sys.prefix) / CONVERTER_FOLDER / "convert_hf_to_gguf.py"
    sys.argv = [script.name, str(model), "--outfile", str(out), "--outtype", "bf16"]
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as stop:
        if stop.code:
            raise ModelError(f"llama.cpp's converter does not take {model}", hint="its reason is in the log") from stop
    if not out.exists():
        raise WorkerError(f"llama.cpp's converter wrote no file for {model}")


def named_split(model: Path) -> str:
    """llama.cpp's name for the split in tokenizer.json; raises ModelError when it is none that we know."""
    pre = json.loads((model / "tokenizer.json").read_text()).get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", [pre])
    patterns = [step["pattern"].get("Regex") for step in steps if step.get("type") == "Split"]
    if len(patterns) == 1 and patterns[0] in KNOWN_SPLITS:
        return KNOWN_SPLITS[patterns[0]]
    if [step.get("type") for step in steps] == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    raise ModelError(
        f"the tokenizer of {model} splits text in a way that llama.cpp does not know",
        hint="use a safetensors quantization (gptq, awq, nf4) for this model",
    )


def require_same_ids(model: Path, file: Path, text: Path) -> None:
    """Raise ModelError when llama.cpp splits a text into other ids than the model's own tokenizer: its proof would not see it."""
    import cyllama.llama.llama_cpp as llama
    from tokenizers import Tokenizer

    sample = text.read_text(encoding="utf-8")[:CHECKED_CHARACTERS]
    own = Tokenizer.from_file(str(model / "tokenizer.json")).encode(sample, add_special_tokens=False).ids
    params = llama.LlamaModelParams()
    holder = llama.LlamaModel(str(file), params)  # the vocabulary dies with its model
    theirs = list(holder.get_vocab().tokenize(sample, False, False))
    if own != theirs:
        place = next(
            (i for i, (a, b) in enumerate(zip(own, theirs, strict=False)) if a != b), min(len(own), len(theirs))
        )
        raise ModelError(
            f"llama.cpp reads other token ids than the tokenizer of {model}: they part at token {place}",
            hint="use a safetensors quantization (gptq, awq, nf4) for this model",
        )


def quantize(source: Path, target: Path, number: int) -> None:
    import cyllama.llama.llama_cpp as llama

    params = llama.LlamaModelQuantizeParams()
    params.ftype = number
    try:
        llama.model_quantize(str(source), str(target), params)
    except RuntimeError as error:
        raise WorkerError(f"llama.cpp's quantizer failed: {error}") from error


def tensors(file: Path) -> tuple[dict[str, int], int]:
    """How many tensors of each type the file holds, and their bytes in all."""
    from gguf import GGUFReader

    types: dict[str, int] = {}
    total = 0
    for tensor in GGUFReader(file).tensors:
        types[tensor.tensor_type.name] = types.get(tensor.tensor_type.name, 0) + 1
        total += int(tensor.n_bytes)
    return types, total


def fallbacks(types: dict[str, int], asked: str) -> list[str]:
    """Types that are there because a row did not divide: wider than asked, and not the mix that K-quants choose."""
    expected = {asked, f"{asked}_K", f"{asked}_0", f"{asked}_1", "Q5_K", "Q6_K", "F32"}
    return sorted(t for t in types if t not in expected)
