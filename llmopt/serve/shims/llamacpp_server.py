"""llama.cpp's server from the xllamacpp wheel, with the flags of ``llama-server`` that llmopt uses.

Runs inside the engine's environment; a wheel has the server but no executable.  A word that is not here is refused by
name: nothing that was asked for is dropped in silence.
"""

from __future__ import annotations

import argparse
import signal
import threading
from typing import Any


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add = parser.add_argument
    add("-m", "--model", required=True)
    add("--host", default="127.0.0.1")
    add("--port", type=int, required=True)
    add("-np", "--parallel", dest="n_parallel", type=int, default=1)
    add("-c", "--ctx-size", dest="n_ctx", type=int, default=0)
    add("-t", "--threads", type=int, default=1)
    add("-b", "--batch-size", dest="n_batch", type=int)
    add("-ub", "--ubatch-size", dest="n_ubatch", type=int)
    add("-ngl", "--gpu-layers", dest="n_gpu_layers", type=int)
    add("-ctk", "--cache-type-k", type=str.upper)
    add("-ctv", "--cache-type-v", type=str.upper)
    add("-fa", "--flash-attn", choices=("on", "off", "auto"), default="auto")
    add("-md", "--model-draft")
    add("--spec-draft-n-max", type=int)
    add("--spec-type", choices=("none", "draft-simple", "ngram-simple"))
    add("--spec-ngram-simple-size-m", type=int)
    add("--cache-prompt", action=argparse.BooleanOptionalAction, default=None)
    add("--cache-reuse", dest="n_cache_reuse", type=int)
    add("--cache-ram", dest="cache_ram_mib", type=int, help="MiB of prompts kept in memory")
    add("-sps", "--slot-prompt-similarity", type=float)
    add("--lora", type=lambda text: text.split(","), default=[])
    add("-lv", "--verbosity", type=int)
    add("--metrics", dest="endpoint_metrics", action="store_true", default=None)
    return parser.parse_args()


# Taken over as they are, when they were given.
SAME = ["n_parallel", "n_ctx", "n_batch", "n_ubatch", "n_gpu_layers", "cache_prompt", "n_cache_reuse", "cache_ram_mib"]
SAME += ["slot_prompt_similarity", "verbosity", "endpoint_metrics"]
FLASH = {"on": "ENABLED", "off": "DISABLED", "auto": "AUTO"}


def parameters(arguments: argparse.Namespace) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = arguments.model
    params.hostnames = [arguments.host]
    params.port = arguments.port
    params.cpuparams.n_threads = arguments.threads
    params.cpuparams_batch.n_threads = arguments.threads
    for name in SAME:
        if (value := getattr(arguments, name)) is not None:
            setattr(params, name, value)
    for name in ("cache_type_k", "cache_type_v"):
        if (value := getattr(arguments, name)) is not None:
            setattr(params, name, getattr(xllamacpp.ggml_type, f"GGML_TYPE_{value}"))
    kinds = xllamacpp.llama_flash_attn_type
    params.flash_attn_type = getattr(kinds, f"LLAMA_FLASH_ATTN_TYPE_{FLASH[arguments.flash_attn]}")
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 1.0) for path in arguments.lora]
    speculate(params.speculative, arguments)
    return params


def speculate(speculative: Any, arguments: argparse.Namespace) -> None:
    """A draft model means ``draft-simple`` unless another type was named, as with ``llama-server``."""
    import xllamacpp

    kind = arguments.spec_type or ("draft-simple" if arguments.model_draft else None)
    if kind is None:
        return
    name = f"COMMON_SPECULATIVE_TYPE_{kind.replace('-', '_').upper()}"
    speculative.types = [getattr(xllamacpp.common_speculative_type, name)]
    if arguments.model_draft:
        speculative.draft.mparams.path = arguments.model_draft
    if arguments.spec_draft_n_max is not None:
        speculative.draft.n_max = arguments.spec_draft_n_max
    if arguments.spec_ngram_simple_size_m is not None:
        speculative.ngram_simple.size_m = arguments.spec_ngram_simple_size_m


def main() -> None:
    arguments = parse_arguments()
    import xllamacpp

    server = xllamacpp.Server(parameters(arguments))
    print("listening on", server.listening_address, flush=True)

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()


if __name__ == "__main__":
    main()
