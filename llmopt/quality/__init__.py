"""The proof of an artifact: how far it is from its base on the same token ids, in the engine's own arithmetic.

``compare`` runs in a worker.  Both models read the same windows of the same token ids,
teacher-forced; per token it keeps the negative log-likelihood of each, the KL
divergence of the artifact's full next-token distribution from the base's, and whether
the most likely token is the same.  Intervals are paired bootstraps over windows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmopt.core.domain import Artifact, Quality
from llmopt.core.environments import Needs
from llmopt.core.errors import ModelError, UsageError
from llmopt.core.files import read_text
from llmopt.core.statistics import bootstrap, percentile

WINDOW_TOKENS = 512
MAX_TOKENS = 16_384
FUNCTION = "llmopt.quality:compare"


def needs(artifact: Artifact) -> Needs:
    """GGUF is read by llama.cpp itself, everything else by transformers, the base always by transformers."""
    modules = {
        "gguf": ("torch", "transformers", "cyllama"),
        "compressed-tensors": ("torch", "transformers", "compressed_tensors"),
        "bitsandbytes": ("torch", "transformers", "bitsandbytes"),
    }.get(artifact.quantization.format, ("torch", "transformers"))
    return Needs(modules=modules, extra="local")


def arguments(artifact: Artifact, text: Path, tokens: int = MAX_TOKENS) -> dict[str, Any]:
    """The arguments of ``compare`` for this artifact, ready for the worker."""
    return {
        "base": artifact.base,
        "artifact": artifact.path,
        "format": artifact.quantization.format,
        "text": str(text),
        "max_tokens": tokens,
    }


def compare(base: str, artifact: str, format: str, text: str, max_tokens: int) -> dict[str, Any]:
    """``Quality`` of one artifact, as a dict. Raises ModelError when it does not load or its numbers are not finite."""
    from llmopt.quality.logits import hf_logits, llamacpp_logits

    windows = token_windows(base, text, max_tokens)
    reference = hf_logits(base)
    candidate = None if artifact == base else llamacpp_logits(artifact) if format == "gguf" else hf_logits(artifact)
    rows = []
    for number, window in enumerate(windows, 1):
        print(f"({number}/{len(windows)}): comparing", flush=True)
        own = reference(window)
        rows.append(window_figures(own, own if candidate is None else candidate(window), window))
    return asdict(summary(rows, sum(len(r["kl"]) for r in rows), Path(text)))


def token_windows(base: str, text: str, max_tokens: int) -> list[list[int]]:
    """Disjoint windows of token ids, all of the same length; shape (windows, WINDOW_TOKENS)."""
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(Path(base) / "tokenizer.json")).encode(read_text(Path(text))).ids[:max_tokens]
    windows = [ids[i : i + WINDOW_TOKENS] for i in range(0, len(ids) - WINDOW_TOKENS + 1, WINDOW_TOKENS)]
    if len(windows) < 3:
        raise UsageError(
            f"{text} has {len(ids)} tokens, three windows need {3 * WINDOW_TOKENS}", hint="give a longer text"
        )
    return windows


def window_figures(base: Any, candidate: Any, window: Sequence[int]) -> dict[str, list[float]]:
    """Per predicted token: nll of base and candidate, KL(base ‖ candidate) in nats, same argmax.

    ``base`` and ``candidate`` are logits of shape (tokens, vocabulary); the last row predicts nothing that is known.
    """
    import torch

    if base.shape != candidate.shape:
        raise ModelError(
            f"the artifact's logits have the shape {tuple(candidate.shape)}, the base's {tuple(base.shape)}",
            hint="it is not a quantization of this base",
        )
    p, q = torch.log_softmax(base[:-1], -1), torch.log_softmax(candidate[:-1], -1)
    if not bool(torch.isfinite(q).all()):
        raise ModelError("the artifact's logits are not finite", hint="the weights are broken: quantize again")
    following = torch.tensor(window[1:]).unsqueeze(-1)
    return {
        "base_nll": (-p.gather(-1, following).squeeze(-1)).tolist(),
        "nll": (-q.gather(-1, following).squeeze(-1)).tolist(),
        "kl": (p.exp() * (p - q)).sum(-1).clamp(min=0).tolist(),
        "same": (p.argmax(-1) == q.argmax(-1)).float().tolist(),
    }


def summary(rows: Sequence[dict[str, list[float]]], tokens: int, text: Path) -> Quality:
    """Pool the windows; the bootstrap draws windows, and base and candidate always together."""
    import math

    def pooled(
        name: str, of: Callable[[float], float] = lambda x: x
    ) -> Callable[[Sequence[dict[str, list[float]]]], float]:
        return lambda some: of(sum(sum(r[name]) for r in some) / sum(len(r[name]) for r in some))

    def interval(statistic: Callable[[Sequence[dict[str, list[float]]]], float]) -> tuple[float, float]:
        found = bootstrap(rows, statistic)
        if found is None:
            raise ModelError("the quality figures are not finite", hint="the weights are broken: quantize again")
        return found

    return Quality(
        tokens=tokens,
        text_sha256=hashlib.sha256(text.read_bytes()).hexdigest(),
        perplexity=pooled("nll", math.exp)(rows),
        base_perplexity=pooled("base_nll", math.exp)(rows),
        kl_mean=pooled("kl")(rows),
        kl_p99=percentile([kl for r in rows for kl in r["kl"]], 99),
        top1_agreement=pooled("same")(rows),
        kl_mean_interval=interval(pooled("kl")),
        top1_interval=interval(pooled("same")),
        perplexity_interval=interval(pooled("nll", math.exp)),
    )
