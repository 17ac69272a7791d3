"""The token ids of the proof, and whether the engine's own tokenizer would give the same; runs inside a worker."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmopt.core.errors import ModelError, UsageError
from llmopt.core.files import read_text
from llmopt.quality import WINDOW_TOKENS
from llmopt.quality.logits import gguf_of

CHECKED_CHARACTERS = 20_000
WRONG_TOKENIZER = "the artifact has another tokenizer than its base: copy the base's tokenizer.json, or quantize again"


def token_windows(base: str, text: str, max_tokens: int) -> list[list[int]]:
    """Disjoint windows of token ids, all of the same length; shape (windows, WINDOW_TOKENS). Raises UsageError."""
    ids = file_ids(Path(base) / "tokenizer.json", read_text(Path(text)))[:max_tokens]
    windows = [ids[i : i + WINDOW_TOKENS] for i in range(0, len(ids) - WINDOW_TOKENS + 1, WINDOW_TOKENS)]
    if len(windows) < 3:
        raise UsageError(
            f"{text} has {len(ids)} tokens, three windows need {3 * WINDOW_TOKENS}", hint="give a longer text"
        )
    return windows


def file_ids(file: Path, sample: str, *, special: bool = True) -> list[int]:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exception
        raise ModelError(f"{file} is no tokenizer: {error}", hint="copy the base's tokenizer.json") from error
    return list(tokenizer.encode(sample, add_special_tokens=special).ids)


def same_ids(base: str, artifact: str, format: str, text: str) -> dict[str, Any]:
    """Ids of the base's tokenizer.json against those of the artifact, as file and as its engine reads it.

    Raises ModelError when the artifact's differ. ``{"same": False}`` comes back where transformers reads other ids than
    tokenizer.json gives for the base itself too: served through it, base and artifact get those same other ids.
    """
    sample = read_text(Path(text))[:CHECKED_CHARACTERS]
    own = file_ids(Path(base) / "tokenizer.json", sample, special=False)
    if format == "gguf":
        reader, theirs = "llama.cpp", llamacpp_ids(artifact, sample)
    else:
        file = Path(artifact) / "tokenizer.json"
        if file.exists():
            require_same(own, file_ids(file, sample, special=False), str(file))
        reader, theirs = "transformers", hf_ids(artifact if file.exists() else base, sample)
        if own != theirs and theirs == hf_ids(base, sample):
            return {"same": False, "reader": reader, "base_tokens": len(own), "artifact_tokens": len(theirs)}
    require_same(own, theirs, f"{reader}, reading {artifact},")
    return {"same": True, "reader": reader, "base_tokens": len(own), "artifact_tokens": len(theirs)}


def require_same(own: Sequence[int], theirs: Sequence[int], who: str) -> None:
    if own == theirs:
        return
    place = next((i for i, (a, b) in enumerate(zip(own, theirs, strict=False)) if a != b), min(len(own), len(theirs)))
    raise ModelError(
        f"{who} gives {len(theirs)} token ids where the base's tokenizer.json gives {len(own)}: they part at token {place}",
        hint=WRONG_TOKENIZER,
    )


def hf_ids(folder: str, sample: str) -> list[int]:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, OSError, KeyError, TypeError) as error:
        words = " ".join(str(error).split())[:200]
        raise ModelError(
            f"transformers does not load the tokenizer of {folder}: {words}", hint=WRONG_TOKENIZER
        ) from error
    return list(tokenizer(sample, add_special_tokens=False)["input_ids"])


def llamacpp_ids(path: str, sample: str) -> list[int]:
    import cyllama.llama.llama_cpp as llama

    params = llama.LlamaModelParams()
    params.n_gpu_layers = 0  # and not vocab_only: cyllama 0.2.18 aborts on it
    try:
        holder = llama.LlamaModel(str(gguf_of(path)), params)  # the vocabulary dies with its model
    except (ValueError, RuntimeError, OSError, AttributeError) as error:
        raise ModelError(f"llama.cpp does not load {path}: {error}", hint="quantize again") from error
    return list(holder.get_vocab().tokenize(sample, False, False))
