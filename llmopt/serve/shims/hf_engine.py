"""The process that runs the model for hf_server.py: transformers, with continuous or with static batching.

It turns ("add" | "cancel", …) from its pipe into ("tokens", [News, …]), and ("facts", …) where its memory grew, until the
pipe closes.  Before it says ("ready", …) it answers requests of its own, a full batch: kernels are chosen, and packed weights
unpacked.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import threading
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

# Run by its path, hf_server.py is a script beside its parts; imported, a module of the package.
# isort: off
if TYPE_CHECKING or __package__:
    from llmopt.serve.shims.hf_memory import Activations, proportional_set_bytes, resident_bytes, weights_bytes
    from llmopt.serve.shims.hf_news import Deliver, News, die_of
    from llmopt.serve.shims.hf_static import StaticBatches
else:
    from hf_memory import Activations, proportional_set_bytes, resident_bytes, weights_bytes
    from hf_news import Deliver, News, die_of
    from hf_static import StaticBatches
# isort: on

DEFAULT_CONTEXT = 1024
WARM_UP, WARM_UP_TOKENS = "warm-up", 64
WARM_UP_LIMIT_S = 3600.0
MOST_WARM_UPS = 16  # as many as are served at once, for what a full batch holds is in the account too, but no more


def run_engine(arguments: argparse.Namespace, pipe: Connection) -> None:
    """Load the model, warm up, say ("ready", (context length, facts)), and work until the pipe closes."""
    import torch

    torch.set_num_threads(arguments.threads)
    import_whole(arguments.model)
    baseline = proportional_set_bytes()
    outbox, model = Outbox(pipe), load(arguments)
    own_limit = getattr(model.config.get_text_config(), "max_position_embeddings", DEFAULT_CONTEXT)
    # What is asked for was held against the model's positions before; RoPE may be scaled beyond that number.
    context = arguments.max_model_len or min(DEFAULT_CONTEXT, own_limit)
    way = StaticBatches if arguments.batching == "static" else ContinuousBatches
    engine: Any = way(model, arguments, context, outbox.deliver)
    activations = Activations(model, engine.written_bytes)
    longest = arguments.max_num_batched_tokens if activations.on_gpu else WARM_UP_TOKENS
    length = max(1, min(longest, context - 2))
    together = min(arguments.max_num_seqs, MOST_WARM_UPS)
    outbox.awaited = together
    for number in range(together):  # each a prompt of its own: nothing is found in a cache
        engine.add(f"{WARM_UP}-{number}", [number] * length, 2, [-1])
    outbox.wait_until_warm()
    facts = {
        "baseline_bytes": baseline,
        # What torch packs for its dynamic kernels is no parameter any more.
        "weights_bytes": None if arguments.dynamic_int8 else weights_bytes(model),
        **engine.facts(),
        "activation_bytes": activations.most(),
    }
    try:
        pipe.send(("ready", (context, facts)))
        outbox.follow(activations, facts)
        while True:
            word, request, *rest = pipe.recv()
            if word == "add":
                outbox.running.add(request)
                engine.add(request, *rest)
            else:
                outbox.running.discard(request)
                engine.cancel(request)
    except (EOFError, OSError):
        os._exit(0)  # the HTTP half is gone, and the generating thread would keep this process alive
    except Exception as error:  # the same thread again: without this one it takes no requests
        die_of(error)


def import_whole(model: str) -> None:
    """What transformers imports only when it is needed, a hundred megabytes of it: before memory is looked at.

    A model without weights is made and dropped.  Whatever is wrong with the real one is for its loading to say.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.generation.continuous_batching import continuous_api  # noqa: F401

    with contextlib.suppress(Exception), torch.device("meta"):
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))


class Outbox:
    """What the generating thread tells: to the pipe, once the warm-up is over; and what memory it came to hold with that."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe, self.lock = pipe, threading.Lock()
        self.warm, self.failed, self.awaited = threading.Event(), list[str](), 1
        self.running, self.facts = set[str](), dict[str, Any]()
        self.activations: Activations | None = None

    def follow(self, activations: Activations, facts: dict[str, Any]) -> None:
        """From here on ``facts`` are told again where activations have grown."""
        self.facts, self.activations = facts, activations

    def deliver(self, news: list[News]) -> None:
        if not self.warm.is_set():
            self.failed.extend(one.error for one in news if one.error)
            self.awaited -= sum(one.finished or one.error is not None for one in news)
            if self.awaited <= 0:
                self.warm.set()
            return
        self.tell("tokens", news)
        self.running.difference_update(one.request for one in news if one.finished or one.error is not None)
        if self.activations is None:
            return
        held = self.activations.grown(self.facts["activation_bytes"], idle=not self.running)
        if held is not None:
            self.facts["activation_bytes"] = held
            self.tell("facts", self.facts)

    def tell(self, word: str, what: Any) -> None:
        with self.lock, contextlib.suppress(OSError):
            self.pipe.send((word, what))

    def wait_until_warm(self) -> None:
        """Ends this process where the warm-up fails: the generating thread would keep it alive."""
        if not self.warm.wait(WARM_UP_LIMIT_S) or self.failed:
            why = self.failed or "no answer"
            print(f"RuntimeError: the model's first requests failed: {why}", file=sys.stderr, flush=True)
            os._exit(1)


def load(arguments: argparse.Namespace) -> Any:
    """The model on the GPU, or on the CPU where there is none, as its config says it is quantized."""
    import torch
    from transformers import AutoModelForCausalLM

    # torch's dynamic kernels take fp32 on the CPU and nothing else.
    device = "cuda" if torch.cuda.is_available() and not arguments.dynamic_int8 else "cpu"
    paged = "" if arguments.batching == "static" else "paged|"
    model = AutoModelForCausalLM.from_pretrained(
        arguments.model,
        dtype=torch.float32 if arguments.dynamic_int8 else "auto",
        device_map=arguments.device_map or device,
        use_safetensors=True,
        attn_implementation=f"{paged}{arguments.attn_implementation}",
    )
    if arguments.dynamic_int8:
        quantize_in_memory(model)
    return model.eval()


def quantize_in_memory(model: Any) -> None:
    """As ``llmopt.quantize.torch_dynamic`` does it, which this file cannot import: llmopt may not be installed here."""
    import torch
    from torch.ao.quantization import default_dynamic_qconfig, quantize_dynamic

    head = model.get_output_embeddings()
    names = [n for n, m in model.named_modules() if type(m) is torch.nn.Linear and m is not head]
    quantize_dynamic(model.eval(), dict.fromkeys(names, default_dynamic_qconfig), dtype=torch.qint8, inplace=True)


class ContinuousBatches:
    """transformers' own continuous batching: a request joins the batch between two steps, and leaves when it is done."""

    def __init__(self, model: Any, arguments: argparse.Namespace, context: int, deliver: Deliver) -> None:
        import torch
        from transformers import ContinuousBatchingConfig, GenerationConfig

        blocks = arguments.max_num_seqs * -(-context // arguments.block_size)
        config = ContinuousBatchingConfig(
            block_size=arguments.block_size,
            num_blocks=blocks,
            max_batch_tokens=arguments.max_num_batched_tokens,
            max_requests_per_batch=arguments.max_num_seqs,
            allow_block_sharing=arguments.enable_prefix_caching,
            use_cuda_graph=False if arguments.enforce_eager else None,
        )
        self.manager = model.init_continuous_batching(GenerationConfig(do_sample=False, eos_token_id=-1), config)
        hits = dict[str, int]()
        self.manager.output_router = router(deliver, hits)
        with torch.no_grad():  # now and here, so that its cache can be asked and watched; `start` takes it up
            self.manager.batch_processor = self.manager._create_batch_processor()
        cache = self.manager.batch_processor.cache
        if arguments.enable_prefix_caching and not cache.use_prefix_sharing:
            raise ValueError(
                "this model's KV cache cannot be shared between prompts: leave --enable-prefix-caching out"
            )
        self.tensors = (*cache.key_cache, *cache.value_cache)
        self.capacity = cache.num_pages
        self.context = context
        count_prefix_hits(cache, hits)
        self.manager.start()
        threading.Thread(target=die_with, args=(self.manager,), daemon=True).start()

    def add(self, request: str, ids: list[int], max_tokens: int, end_ids: list[int]) -> None:
        self.manager.add_request(
            ids, request_id=request, max_new_tokens=max_tokens, streaming=True, eos_token_id=end_ids
        )

    def cancel(self, request: str) -> None:
        self.manager.cancel_request(request)

    def written_bytes(self) -> int:
        """Of the memory that is reserved for the KV cache: transformers takes it and touches it only as blocks are used."""
        return resident_bytes(self.tensors)

    def facts(self) -> dict[str, Any]:
        return {
            "kv_cache_bytes": sum(t.nbytes for t in self.tensors),
            "kv_capacity_tokens": self.capacity,
            "max_concurrency": self.capacity / self.context,
        }


def die_with(manager: Any) -> None:
    """transformers' manager outlives its generating thread, and takes requests that nobody will answer."""
    manager._generation_thread.join()
    die_of(manager.background_thread_status.fatal_error)


def count_prefix_hits(cache: Any, found: dict[str, int]) -> None:
    """Note of each request how many tokens of its prompt were found in the cache: transformers tells nobody."""
    search = cache.search_prefix_match

    def counted(request_id: str, prompt_ids: list[int]) -> int:
        length: int = search(request_id, prompt_ids)
        found[request_id] = min(length, len(prompt_ids) - 1)  # the last token is computed anyway, to start from
        return length

    cache.search_prefix_match = counted


def router(deliver: Deliver, hits: dict[str, int]) -> Any:
    """An output router that delivers from the generating thread itself."""
    from transformers.generation.continuous_batching.continuous_api import OutputRouter

    class Direct(OutputRouter):  # type: ignore[misc]
        def deliver(self, output: Any) -> None:
            self.deliver_batch([output])

        def deliver_batch(self, outputs: list[Any]) -> None:
            deliver(
                [
                    News(
                        request=o.request_id,
                        tokens=list(o.generated_tokens),
                        finished=o.is_finished(),
                        error=o.error,
                        scheduled_s=o.lifespan[0] if o.lifespan[0] > 0 else None,
                        cached=(hits.pop if o.is_finished() else hits.get)(o.request_id, 0),
                    )
                    for o in outputs
                ]
            )

    return Direct()
