"""Prompts of exact token length, all different, so that no prefix cache can help."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmopt.core.errors import UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Tokens per word of common English and code under common tokenizers; used, and said so, only without a tokenizer.
TOKENS_PER_WORD = 1.4
ROUNDS = 40
SOURCE_CHARACTERS = 8  # of the source for one token, with room to spare
LEAST_SOURCE = 1 << 14


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A text to send; ``tokens`` is its exact length, or ``None`` when that is not known.

    ``answer_tokens`` is the length of the answer where the data set has one.
    """

    text: str
    tokens: int | None
    answer_tokens: int | None = None


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


def make_prompts(
    source: str, lengths: Sequence[int], seed: str, salt: str, tokenizer: Tokenizer | None, shared: int = 0
) -> list[Prompt]:
    """One prompt of each length in tokens, cut out of ``source`` as ``seed`` says, each begun with a salt of its own.

    The salt comes first, where a prefix cache would look.  The same ``seed`` and ``salt`` give the same prompts.
    ``shared`` tokens come before it, the same in all of them: a system prompt, salted once for the run.
    """
    generator, salts = random.Random(f"cuts-{seed}"), random.Random(f"salts-{salt}")
    if tokenizer is None:
        words = source.split(" ")
        sizes = [max(1, round((length - shared) / TOKENS_PER_WORD)) for length in lengths]
        begin = by_words(generator, salts, words, max(1, round(shared / TOKENS_PER_WORD))) if shared else []
        texts = [" ".join(begin + by_words(generator, salts, words, size)) for size in sizes]
        return [Prompt(text=text, tokens=None) for text in texts]
    return exact_prompts(generator, salts, source, lengths, tokenizer, shared)


def with_salts(prompts: Sequence[Prompt], salt: str, tokenizer: Tokenizer | None) -> list[Prompt]:
    """Prompts that were not cut by us, begun with a salt each; their lengths are counted anew."""
    salts = random.Random(f"salts-{salt}")
    texts = [f"{salt_text(salts)} {prompt.text}" for prompt in prompts]
    counts = [len(ids) for ids in tokenizer.encode_batch_fast(texts)] if tokenizer is not None else [None] * len(texts)
    return [
        Prompt(text=text, tokens=count, answer_tokens=prompt.answer_tokens)
        for text, count, prompt in zip(texts, counts, prompts, strict=True)
    ]


def salt_text(generator: random.Random) -> str:
    return f"{generator.getrandbits(48):012x}"


def by_words(generator: random.Random, salts: random.Random, words: list[str], size: int) -> list[str]:
    start = generator.randrange(max(1, len(words) - size))
    return [salt_text(salts), *words[start : start + size - 1]]


def exact_prompts(
    generator: random.Random,
    salts: random.Random,
    source: str,
    lengths: Sequence[int],
    tokenizer: Tokenizer,
    shared: int = 0,
) -> list[Prompt]:
    """Texts that encode to exactly these lengths: cut at a token, kept when they encode back to the same count.

    In batches, for the library encodes a thousand texts on all cores in the time that a loop takes for fifty.  What
    does not come back whole is cut anew elsewhere.
    """
    longest = max(lengths, default=1)
    start = generator.randrange(max(1, len(source) - longest * SOURCE_CHARACTERS))
    part = source[start : start + max(LEAST_SOURCE, longest * SOURCE_CHARACTERS)]  # encoding all of it would take 50 ms
    body = tokenizer.encode(part, add_special_tokens=False).ids
    body = body * (1 + (longest + 1) // max(1, len(body)))
    special = len(tokenizer.encode("").ids)
    begin: list[int] = []
    if shared:
        start = generator.randrange(max(1, len(body) - shared))
        begin = (tokenizer.encode(salt_text(salts), add_special_tokens=False).ids + body[start:])[:shared]
    done: dict[int, str] = {}
    missing = list(range(len(lengths)))
    for _ in range(ROUNDS):
        if not missing:
            return [Prompt(text=done[i], tokens=length) for i, length in enumerate(lengths)]
        begun = tokenizer.encode_batch([salt_text(salts) for _ in missing], add_special_tokens=False)
        cuts = []
        for place, salted in zip(missing, begun, strict=True):
            wanted = max(0, lengths[place] - special - len(begin))
            start = generator.randrange(max(1, len(body) - wanted))
            cuts.append(begin + (salted.ids + body[start : start + wanted])[:wanted])
        texts = tokenizer.decode_batch(cuts, skip_special_tokens=False)
        counts = tokenizer.encode_batch_fast(texts)  # without offsets: only the number matters
        done |= {i: text for i, text, n in zip(missing, texts, counts, strict=True) if len(n) == lengths[i]}
        missing = [i for i in missing if i not in done]
    raise UsageError(
        f"could not make a prompt of exactly {lengths[missing[0]]} tokens with this tokenizer",
        hint="try another --input-tokens",
    )
