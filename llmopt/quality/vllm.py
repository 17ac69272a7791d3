"""Logits out of vLLM's own model, in the process of a worker.

vLLM gives log-probabilities of a prompt as one Python object per token and vocabulary entry: gigabytes for a
vocabulary of 150,000. Its model computes the same numbers as one tensor, in ``compute_logits``, whenever
a prompt's log-probabilities are asked for: there we take them, complete, as they are, before any top-k.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator, Sequence
from typing import Any

from llmopt.core.errors import ModelError, WorkerError
from llmopt.quality import WINDOW_TOKENS
from llmopt.quality.logits import Logits, Source

KV_CACHE_GIB = "1"  # one window at a time needs no more
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": KV_CACHE_GIB,
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the model must live in this process
    "VLLM_NO_USAGE_STATS": "1",
    # The sampler compiles a rank count at its first prompt log-probability: 30 s on two cores, for nothing here.
    "TORCHDYNAMO_DISABLE": "1",
}


@contextlib.contextmanager
def vllm_logits(source: Source) -> Iterator[Logits]:
    """Raises ModelError when vLLM does not load it, WorkerError when this version computes no logits of a prompt."""
    os.environ.update(ENVIRONMENT)
    from vllm import LLM, SamplingParams

    try:
        engine = LLM(
            model=source.path,
            skip_tokenizer_init=True,
            enforce_eager=True,
            kv_cache_dtype=source.kv_cache_dtype,
            max_model_len=WINDOW_TOKENS + 1,
            max_num_batched_tokens=2 * WINDOW_TOKENS,  # a window is one step
            max_num_seqs=1,
            enable_prefix_caching=False,
            disable_log_stats=True,
            seed=0,
        )
    except Exception as error:  # of every kind, from its checks to its kernels
        words = " ".join(str(error).split())[:300]
        raise ModelError(f"vLLM does not load {source.path}: {words}", hint="prove it in another engine") from error
    seen: list[Any] = []
    engine.apply_model(lambda model: record_logits(model, seen))
    asked = SamplingParams(max_tokens=1, prompt_logprobs=1, detokenize=False, temperature=0)

    def logits(ids: Sequence[int]) -> Any:
        seen.clear()
        engine.generate([{"prompt_token_ids": list(ids)}], asked, use_tqdm=False)
        found = [tensor for tensor in seen if len(tensor) == len(ids) - 1]
        if len(found) != 1:
            raise WorkerError("this version of vLLM computes no logits of a prompt", hint="prove it in another engine")
        return found[0].cpu()

    yield logits
    shut_down(engine)


def record_logits(model: Any, seen: list[Any]) -> None:
    """Wrap ``compute_logits`` so that each result is also appended to ``seen``; shape (rows, vocabulary)."""
    compute = model.compute_logits

    def recorded(*arguments: Any, **options: Any) -> Any:
        result = compute(*arguments, **options)
        if result is not None:
            seen.append(result)
        return result

    model.compute_logits = recorded


def shut_down(engine: Any) -> None:
    """Free the model, so that the next one finds the memory (and the process groups of torch.distributed) free."""
    from vllm.distributed import cleanup_dist_env_and_memory

    engine.llm_engine.engine_core.shutdown()
    cleanup_dist_env_and_memory()
    gc.collect()
