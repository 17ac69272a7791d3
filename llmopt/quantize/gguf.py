"""GGUF: llama.cpp's official converter, then its own quantizer (both run in a worker)."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from llmopt.core.environments import CONVERTER_FOLDER
from llmopt.core.errors import ModelError, WorkerError
from llmopt.core.gguf_types import FALLBACK, FILE_TYPES
from llmopt.quantize.steps import step, without_bars

# The split of a tokenizer.json → llama.cpp's name for it. The converter knows published
# tokenizers by a hash over their whole vocabulary, so it refuses a tokenizer of one's own
# although its split is a known one.
KNOWN_SPLITS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen2",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "llama-bpe",
}


def run(model: str, out: str, settings: dict[str, Any], samples: str) -> dict[str, Any]:
    """Convert ``model`` to GGUF, then quantize it to ``settings["type"]`` as ``out``/model.gguf; runs in a worker.

    ``settings["imatrix"]``: ``none``, ``auto`` or a file.  With ``auto`` and a type that can do without, two files are
    left, model.gguf without and with-imatrix.gguf with the importance matrix: the caller measures which is better.
    ``tools`` holds the paths of llama.cpp's own programs, where they are; without them cyllama quantizes.
    ``converted``: where the converted model is, or is to be left for other types.
    """
    from llmopt.quantize.checks import give_freed_memory_back

    give_freed_memory_back()
    kind, tools = settings["type"], settings.get("tools") or {}
    folder = Path(out)
    kept = settings.get("converted")
    whole, result = Path(kept or folder / "base.gguf"), folder / "model.gguf"
    steps = 3 if settings["imatrix"] == "none" else 4
    step(0, steps, "converting to GGUF")
    reading = started_reading(Path(model), whole, Path(settings["check_text"]))
    if not whole.exists():
        convert(Path(model), whole.with_suffix(".partial"))
        whole.with_suffix(".partial").rename(whole)
    let_read(Path(model), reading)
    details: dict[str, Any] = {}
    matrix = importance_matrix(
        settings["imatrix"], whole, folder, Path(samples) if samples else None, tools, steps, details
    )
    step(steps - 2, steps, f"quantizing to {kind.upper()}")
    if matrix is None or not FILE_TYPES[kind].needs_imatrix:
        quantize(whole, result, kind, tools.get("llama-quantize"))
    if matrix is not None:
        other = result if FILE_TYPES[kind].needs_imatrix else folder / "with-imatrix.gguf"
        with_matrix(whole, other, kind, matrix, tools["llama-quantize"])
        if settings["imatrix"] != "auto":
            other.replace(result)
    step(steps - 1, steps, "checking token ids")
    require_same_ids(Path(model), reading)
    if not kept:
        whole.unlink()
    return details


def import_converter() -> None:
    """All that llama.cpp's converter imports: more than half of its time, and it needs no model yet.

    Not the table of transformers' models, which it never asks: 2 MiB of names.
    """
    without_bars()
    sys.path.insert(0, str(Path(sys.prefix) / CONVERTER_FOLDER))  # before the registry's older gguf
    import conversion.base  # noqa: F401


def importance_matrix(
    wanted: str,
    whole: Path,
    out: Path,
    samples: Path | None,
    tools: dict[str, str],
    steps: int,
    details: dict[str, Any],
) -> Path | None:
    """The matrix file: the one named, or one computed by llama-imatrix from the calibration; ``None`` without one."""
    if wanted == "none":
        return None
    if wanted != "auto":
        details["imatrix"] = {"file": wanted}
        return Path(wanted)
    if not {"llama-imatrix", "llama-quantize"} <= tools.keys() or samples is None:
        details["imatrix"] = {"left_out": "llama.cpp's own tools are not here"}
        return None
    step(1, steps, "computing the importance matrix")
    folder = out / "imatrix"  # not beside the weights, which it would be taken for
    folder.mkdir()
    text, matrix = folder / "calibration.txt", folder / "imatrix.gguf"
    content = json.loads(samples.read_text())
    length = max(len(ids) for ids in content["input_ids"])
    details["imatrix"] = {"computed_from": "calibration", "chunk_tokens": length, "chunks": len(content["input_ids"])}
    # Beside a model that was converted for several types lies the matrix of this calibration too.
    kept = whole.with_name(f"imatrix-{hashlib.sha256(samples.read_bytes()).hexdigest()[:16]}.gguf")
    if whole.parent != out and kept.exists():
        shutil.copyfile(kept, matrix)
        return matrix
    text.write_text(content["text"], encoding="utf-8")
    command = [
        tools["llama-imatrix"], "-m", str(whole), "-f", str(text), "-o", str(matrix), "-c", str(max(64, length)),
        "--chunks", str(len(content["input_ids"])), "-ngl", "0" if not has_gpu() else "99", "--no-ppl",
    ]  # fmt: skip
    tool(command)
    text.unlink()
    if whole.parent != out:
        shutil.copyfile(matrix, kept.with_suffix(".partial"))
        kept.with_suffix(".partial").rename(kept)
    return matrix


def has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def tool(command: list[str]) -> None:
    """Run one of llama.cpp's programs; its output goes to the job's log. Raises WorkerError with its last error."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False
    )
    print(done.stdout, flush=True)
    if done.returncode:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        words = (
            [line for line in lines if re.search(r"error|fail|missing|required", line, re.I)] or lines or ["no output"]
        )
        raise WorkerError(f"{Path(command[0]).name} ended with status {done.returncode}: {words[-1]}")


def convert(model: Path, out: Path) -> None:
    """Run the official converter in this process, with our word for splits that it does not know."""
    import runpy

    import_converter()
    from conversion.base import TextModel

    recognise = TextModel.get_vocab_base_pre

    def recognise_or_name(self: Any, tokenizer: Any) -> str:
        try:
            return str(recognise(self, tokenizer))
        except NotImplementedError:
            return named_split(model)

    TextModel.get_vocab_base_pre = recognise_or_name
    without_remote_code(model)
    script = Path(sys.prefix) / CONVERTER_FOLDER / "convert_hf_to_gguf.py"
    sys.argv = [script.name, str(model), "--outfile", str(out), "--outtype", "bf16"]
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as stop:
        if stop.code:
            raise ModelError(f"llama.cpp's converter does not take {model}", hint="its reason is in the log") from stop
    if not out.exists():
        raise WorkerError(f"llama.cpp's converter wrote no file for {model}")


def without_remote_code(model: Path) -> None:
    """For some architectures the converter has transformers run code out of the model's folder: here it raises ModelError.

    A model of another architecture need only name one of those in its config.json.
    """
    from transformers import AutoConfig, AutoTokenizer, dynamic_module_utils

    def refuse(*_: Any, **__: Any) -> Any:
        raise ModelError(
            f"{model} brings code of its own, and llama.cpp's converter wants to run it",
            hint="it is not run; use a quantization that needs none of it (nf4, gptq-int4-g128)",
        )

    dynamic_module_utils.get_class_in_module = refuse
    for auto in (AutoConfig, AutoTokenizer):
        load = auto.from_pretrained

        def trusting_nothing(*arguments: Any, load: Any = load, **options: Any) -> Any:
            try:
                return load(*arguments, **options | {"trust_remote_code": False})
            except ValueError as error:
                if "trust_remote_code" in str(error):
                    refuse()
                raise

        auto.from_pretrained = trusting_nothing


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


def started_reading(model: Path, file: Path, text: Path) -> subprocess.Popen[str]:
    """llama.cpp reads a text with the converted tokenizer (``gguf_ids.py``), which quantizing copies as it is.

    Started before there is a file: its imports, half a second, are done beside the conversion.
    """
    argv = [sys.executable, str(Path(__file__).with_name("gguf_ids.py")), str(model), str(file), str(text)]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def let_read(model: Path, reading: subprocess.Popen[str]) -> None:
    """Its file is there now. Raises WorkerError where it has ended before: at once, not after hours of quantizing."""
    if reading.poll() is not None:
        require_same_ids(model, reading)
    if reading.stdin is not None:
        reading.stdin.close()
        reading.stdin = None  # communicate() would flush it


def require_same_ids(model: Path, reading: subprocess.Popen[str]) -> None:
    """Raise ModelError when llama.cpp splits a text into other ids than the model's own tokenizer: its proof would not see it."""
    said, _ = reading.communicate()
    if reading.returncode:
        raise WorkerError(f"llama.cpp could not read the tokenizer that was converted from {model}")
    if (place := json.loads(said.splitlines()[-1])) is not None:
        raise ModelError(
            f"llama.cpp reads other token ids than the tokenizer of {model}: they part at token {place}",
            hint="use a safetensors quantization (gptq, awq, nf4) for this model",
        )


def quantize(source: Path, target: Path, kind: str, program: str | None) -> None:
    """By the user's own llama-quantize where there is one, else by cyllama. Raises WorkerError."""
    if program is not None:
        tool([program, str(source), str(target), kind.upper()])
        return
    import cyllama.llama.llama_cpp as llama

    params = llama.LlamaModelQuantizeParams()
    params.ftype = FILE_TYPES[kind].number
    try:
        llama.model_quantize(str(source), str(target), params)
    except RuntimeError as error:
        failure = WorkerError(f"llama.cpp's quantizer failed on {kind.upper()}")
        failure.cause_in_log = True  # its C++ half says why on standard error only
        raise failure from error


def with_matrix(source: Path, target: Path, kind: str, matrix: Path, program: str) -> None:
    tool([program, "--imatrix", str(matrix), str(source), str(target), kind.upper()])


def fallbacks(types: dict[str, int], main: str) -> list[str]:
    """Types that are there because a row did not divide: the main type's substitute, or 16 bits."""
    return sorted(t for t in types if t in {FALLBACK.get(main), "F16"} - {main})
