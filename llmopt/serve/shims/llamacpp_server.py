"""llama.cpp's server from the xllamacpp wheel, with the few flags of ``llama-server`` that llmopt uses.

Runs inside the engine's environment; a wheel has the server but no executable.
"""

from __future__ import annotations

import argparse
import signal
import threading


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("-np", "--parallel", type=int, default=1)
    parser.add_argument("-c", "--ctx-size", type=int, default=0)
    parser.add_argument("-t", "--threads", type=int, default=1)
    parser.add_argument("-ngl", "--gpu-layers", type=int, default=None)
    parser.add_argument("--cache-ram", type=int, default=None, help="MiB of prompts kept in memory")
    parser.add_argument("--metrics", action="store_true")
    arguments = parser.parse_args()

    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = arguments.model
    params.hostnames = [arguments.host]
    params.port = arguments.port
    params.n_parallel = arguments.parallel
    params.n_ctx = arguments.ctx_size
    params.cpuparams.n_threads = arguments.threads
    params.cpuparams_batch.n_threads = arguments.threads
    params.endpoint_metrics = arguments.metrics
    if arguments.cache_ram is not None:
        params.cache_ram_mib = arguments.cache_ram
    if arguments.gpu_layers is not None:
        params.n_gpu_layers = arguments.gpu_layers
    server = xllamacpp.Server(params)
    print("listening on", server.listening_address, flush=True)

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()


if __name__ == "__main__":
    main()
