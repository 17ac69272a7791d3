"""Where llmopt's own word for a GGUF's tokenizer is put to the test: ``python gguf_ids.py MODEL GGUF TEXT`` prints JSON.

``null`` when llama.cpp reads the ids of the model's own tokenizer, else the number of the token at which they part.  GGUF is
there when standard input ends, or its converter has died.  A script of its own: it runs beside llama.cpp's converter and
quantizer, and the memory of the file that it loads is in no other process.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

CHECKED_CHARACTERS = 20_000


def parting(model: Path, file: Path, text: Path) -> int | None:
    """The first token in which the two readings of the text's beginning differ."""
    import cyllama.llama.llama_cpp as llama
    from tokenizers import Tokenizer

    sample = text.read_text(encoding="utf-8")[:CHECKED_CHARACTERS]
    own = Tokenizer.from_file(str(model / "tokenizer.json")).encode(sample, add_special_tokens=False).ids
    sys.stdin.read()
    if not file.exists():  # else the library's words of it would stand last in the log
        os._exit(1)
    holder = llama.LlamaModel(str(file), llama.LlamaModelParams())  # the vocabulary dies with its model
    theirs = list(holder.get_vocab().tokenize(sample, False, False))
    if own == theirs:
        return None
    pairs = enumerate(zip(own, theirs, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(own), len(theirs)))


if __name__ == "__main__":
    print(json.dumps(parting(*map(Path, sys.argv[1:4]))), flush=True)
    os._exit(0)  # unloading takes longer than the answer
