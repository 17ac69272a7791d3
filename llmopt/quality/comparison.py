"""Base and artifact on the same windows of token ids, teacher-forced; runs in a worker.

The base reads everything first and is gone before the artifact is loaded: memory holds one model at a time, and a
library that patches transformers when a quantized model is loaded (gptqmodel) cannot reach the base. The base's logits
wait on disk, window by window, in the type that the engine gave them; where several artifacts of one base are proven one
after the other, they lie there for all of them.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import math
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llmopt.core.domain import Quality
from llmopt.core.errors import ModelError
from llmopt.core.statistics import bootstrap, percentile
from llmopt.quality import ENGINES, Engine
from llmopt.quality.logits import Source
from llmopt.quality.tokens import same_ids, token_windows

# Logits of so many numbers at once become probabilities: 64 MB in float32, a hundred rows of a vocabulary of 150,000.
NUMBERS_AT_ONCE = 1 << 24
COMPLETE = "complete"
Rows = Sequence[dict[str, list[float]]]


def compare(
    base: str,
    artifact: str,
    format: str,
    engine: str,
    kv_cache_dtype: str,
    text: str,
    max_tokens: int,
    scratch: str,
    reference: str = "",
) -> dict[str, Any]:
    """``Quality`` of one artifact, as a dict. Raises ModelError when it does not load or its numbers are not finite.

    ``reference``: a folder whose name stands for base, text, tokens and engine; the base's logits are left there, and
    read from there when they are.
    """
    windows = token_windows(base, text, max_tokens)
    chosen = ENGINES[engine]
    own_ids = same_ids(base, artifact, format, text)
    is_base = artifact == base and kv_cache_dtype == "auto"
    with tempfile.TemporaryDirectory(prefix="llmopt-logits-", dir=scratch) as folder:
        place = Path(reference or folder)
        there = (place / COMPLETE).exists()
        reading = Progress(len(windows) * (2 - is_base - there))
        if not there:
            keep_logits(ENGINES[chosen.reference], Source(path=base), windows, place, reading)
            gc.collect()
        kept = [place / f"{number}.safetensors" for number in range(len(windows))]
        if is_base:
            rows = [window_figures(load(file), load(file), window) for file, window in zip(kept, windows, strict=True)]
        else:
            source = Source(path=artifact, base=base, format=format, kv_cache_dtype=kv_cache_dtype)
            with opened(chosen, source) as logits, ThreadPoolExecutor(chosen.windows_at_once) as pool:

                def figures_of(file: Path, window: Sequence[int]) -> dict[str, list[float]]:
                    row = window_figures(load(file), logits(window), window)
                    if not reference:
                        file.unlink()
                    reading.step()
                    return row

                rows = list(pool.map(figures_of, kept, windows))
    figures = summary(rows, sum(len(r["kl"]) for r in rows), Path(text))
    base_engine = ENGINES[chosen.reference]
    return asdict(
        replace(
            figures,
            engine=engine,
            engine_version=engine_version(chosen),
            kv_cache_dtype=kv_cache_dtype,
            reference=f"{base_engine.distribution} {engine_version(base_engine) or ''}".strip(),
            tokenizer=own_ids,
        )
    )


class Progress:
    """Prints ``(3/16): …`` lines, which the parent reads."""

    def __init__(self, total: int) -> None:
        self.done, self.total = 0, total

    def step(self) -> None:
        self.done += 1
        print(f"({self.done}/{self.total}): comparing", flush=True)


def import_engine(engine: str, base: str) -> None:
    """Import what ``compare`` will need for the base, which takes seconds, and nothing that patches it (see above)."""
    import safetensors.torch  # noqa: F401
    import torch  # noqa: F401

    if engine == "hf":
        from transformers import AutoConfig, AutoModelForCausalLM

        AutoModelForCausalLM._model_mapping[type(AutoConfig.from_pretrained(base))]
    else:
        importlib.import_module(ENGINES[engine].modules[-1])


def opened(engine: Engine, source: Source) -> Any:
    """The engine's ``with`` block over one model."""
    module, _, name = engine.logits.partition(":")
    return getattr(importlib.import_module(module), name)(source)


def keep_logits(
    engine: Engine, source: Source, windows: Sequence[Sequence[int]], folder: Path, reading: Progress
) -> None:
    """Run a model over all windows; one file of logits for each, and at last one that says that they are all there."""
    from safetensors.torch import save_file

    with opened(engine, source) as logits:
        for number, window in enumerate(windows):
            save_file({"logits": logits(window).contiguous()}, folder / f"{number}.safetensors")
            reading.step()
    (folder / COMPLETE).touch()


def load(file: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(file)["logits"]


def window_figures(base: Any, candidate: Any, window: Sequence[int]) -> dict[str, list[float]]:
    """Per predicted token: nll of base and candidate, KL(base ‖ candidate) in nats, same argmax.

    ``base`` and ``candidate`` are logits of shape (tokens, vocabulary), in which row i predicts token i + 1; a row for the
    last token predicts nothing that is known and may be absent. Raises ModelError for other shapes, NaN and infinity.
    """
    import torch

    count = len(window) - 1
    if base.shape[-1] != candidate.shape[-1] or min(len(base), len(candidate)) < count:
        raise ModelError(
            f"the artifact's logits have the shape {tuple(candidate.shape)}, the base's {tuple(base.shape)}",
            hint="it is not a quantization of this base",
        )
    following = torch.tensor(window[1:]).unsqueeze(-1)
    figures: dict[str, list[float]] = {"base_nll": [], "nll": [], "kl": [], "same": []}
    step = max(1, NUMBERS_AT_ONCE // base.shape[-1])
    for start in range(0, count, step):
        rows = slice(start, min(start + step, count))
        p = torch.log_softmax(base[rows].float(), -1)
        q = torch.log_softmax(candidate[rows].float(), -1)
        farther = p - q
        if not math.isfinite(float(farther.sum())):  # masks over every number would take longer than all the rest
            farther = without_ruled_out(p, q)
        figures["base_nll"] += (-p.gather(-1, following[rows]).squeeze(-1)).tolist()
        figures["nll"] += (-q.gather(-1, following[rows]).squeeze(-1)).tolist()
        figures["kl"] += (p.exp() * farther).sum(-1).clamp(min=0).tolist()
        figures["same"] += (p.argmax(-1) == q.argmax(-1)).float().tolist()
    return figures


def without_ruled_out(p: Any, q: Any) -> Any:
    """p − q where a logit of -inf, a token that the engine rules out for both, counts as no difference.

    Raises ModelError for anything else that is not finite: a broken weight.
    """
    import torch

    ruled_out = torch.isneginf(p) & torch.isneginf(q)
    if not bool((torch.isfinite(q) | ruled_out).all()):
        raise ModelError("the artifact's logits are not finite", hint="the weights are broken: quantize again")
    return p.masked_fill(ruled_out, 0) - q.masked_fill(ruled_out, 0)


def summary(rows: Rows, tokens: int, text: Path) -> Quality:
    """Pool the windows; the bootstrap draws windows, and base and candidate always together."""

    def pooled(name: str, of: Callable[[float], float] = lambda x: x) -> Callable[[Rows], float]:
        return lambda some: of(sum(sum(r[name]) for r in some) / sum(len(r[name]) for r in some))

    def interval(statistic: Callable[[Rows], float]) -> tuple[float, float]:
        found = bootstrap(rows, statistic)
        if found is None:
            raise ModelError("the quality figures are not finite", hint="the weights are broken: quantize again")
        return found

    def perplexity(mean_nll: float) -> float:
        """Of garbage the mean may exceed what a float's exponential holds; such a figure is as good as this one."""
        return math.exp(min(mean_nll, 700.0))

    return Quality(
        tokens=tokens,
        text_sha256=hashlib.sha256(text.read_bytes()).hexdigest(),
        perplexity=pooled("nll", perplexity)(rows),
        base_perplexity=pooled("base_nll", perplexity)(rows),
        kl_mean=pooled("kl")(rows),
        kl_p99=percentile([kl for r in rows for kl in r["kl"]], 99),
        top1_agreement=pooled("same")(rows),
        kl_mean_interval=interval(pooled("kl")),
        top1_interval=interval(pooled("same")),
        perplexity_interval=interval(pooled("nll", perplexity)),
    )


def engine_version(engine: Engine) -> str | None:
    """The version in this environment, of the wheel that carries the engine where it is not the engine's own.

    vLLM's builds for the CPU have another distribution's name.
    """
    for name in (engine.distribution, f"{engine.distribution}-cpu"):
        try:
            return f"of {name} {version(name)}" if engine.name == "llamacpp" else version(name)
        except PackageNotFoundError:
            continue
    return None
