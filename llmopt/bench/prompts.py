"""Prompts of exact token length, all different, so that no prefix cache can help."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmopt.core.errors import UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Words per token of common English and code under common tokenizers; used, and said so, only without a tokenizer.
TOKENS_PER_WORD = 1.4
ATTEMPTS = 40


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """``texts`` to send; ``tokens`` is their exact length each, or ``None`` when it is an estimate."""

    texts: tuple[str, ...]
    tokens: int | None


def load_tokenizer(path: str | Path) -> Tokenizer:
    """From a tokenizer.json or the folder that holds one; raises UsageError."""
    from tokenizers import Tokenizer

    file = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises a bare Exception
        raise UsageError(
            f"no tokenizer at {file}: {error}", hint="name a tokenizer.json or the folder that holds it"
        ) from error


def make_prompts(source: str, count: int, length: int, salt: str, tokenizer: Tokenizer | None) -> Prompts:
    """``count`` different prompts of ``length`` tokens each out of ``source``, each begun with its own salt.

    The salt comes first, where a prefix cache would look.  The same ``salt`` gives the same prompts.
    """
    generator = random.Random(salt)
    words = source.split(" ")
    if tokenizer is None:
        size = max(1, round(length / TOKENS_PER_WORD))
        return Prompts(texts=tuple(" ".join(salted(generator, words, size)) for _ in range(count)), tokens=None)
    return Prompts(texts=tuple(exact(generator, words, length, tokenizer) for _ in range(count)), tokens=length)


def salted(generator: random.Random, words: list[str], size: int) -> list[str]:
    start = generator.randrange(max(1, len(words) - size))
    return [f"{generator.getrandbits(48):012x}", *words[start : start + size - 1]]


def exact(generator: random.Random, words: list[str], length: int, tokenizer: Tokenizer) -> str:
    """A text that encodes to exactly ``length`` tokens: cut at a token, kept when it encodes back to the same count."""
    for _ in range(ATTEMPTS):
        ids = tokenizer.encode(" ".join(salted(generator, words, length))).ids
        while len(ids) < length:
            ids += tokenizer.encode(" " + generator.choice(words)).ids
        text = tokenizer.decode(ids[:length])
        if len(tokenizer.encode(text).ids) == length:
            return text
    raise UsageError(
        f"could not make a prompt of exactly {length} tokens with this tokenizer", hint="try another --input-tokens"
    )
