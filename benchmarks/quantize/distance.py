"""How far quantized folders are from their base: mean KL in nats and top-1 agreement on held-out text.

python distance.py BASE TEXT TOKENS FOLDER

Prints one line of JSON.  It is none of llmopt's code, so that it judges llmopt's results and the bare libraries' alike.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

WINDOW = 512


def log_probabilities(folder: str, windows: Any) -> Any:
    """Of every next token of every window; shape (windows · (WINDOW − 1), vocabulary)."""
    import torch
    from transformers import AutoModelForCausalLM

    file: dict[str, Any] = {"use_safetensors": True}
    if Path(
        folder, "model.gguf"
    ).exists():  # transformers unpacks it: the weights' distance, not llama.cpp's arithmetic
        sys.path[:0] = map(str, Path(sys.prefix).glob("share/llmopt/llama.cpp-*"))
        import gguf

        gguf.__version__ = "0.19.0"  # it lies there without the metadata that transformers looks for
        file = {"gguf_file": "model.gguf"}
    network = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map="cpu", **file)
    network.eval()
    with torch.inference_mode():
        rows = [torch.log_softmax(network(window[None]).logits[0, :-1].float(), -1) for window in windows]
    return torch.cat(rows)


def main() -> None:
    import torch
    from tokenizers import Tokenizer

    base, text, tokens, folder = sys.argv[1:]
    ids = Tokenizer.from_file(f"{base}/tokenizer.json").encode(Path(text).read_text(encoding="utf-8")).ids
    ids = ids[: min(int(tokens), len(ids)) // WINDOW * WINDOW]
    windows = torch.tensor(ids).view(-1, WINDOW)
    p, q = log_probabilities(base, windows), log_probabilities(folder, windows)
    kl = (p.exp() * (p - q)).sum(-1).clamp(min=0)
    same = (p.argmax(-1) == q.argmax(-1)).float()
    print(json.dumps({"kl_mean": float(kl.mean()), "top1": float(same.mean()), "tokens": kl.numel()}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
