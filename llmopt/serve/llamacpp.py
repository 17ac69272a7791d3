"""llama.cpp's own server, with parallel slots.

The user's ``llama-server`` on PATH goes first; else the same server out of the
xllamacpp wheel, in a process of its own.  ``python -m llama_cpp.server`` is never
used: it serialises requests, and by default a new one kills the running stream.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

from llmopt.core.domain import ServerCommand
from llmopt.core.environments import Environment, Needs
from llmopt.core.worker import QUIET_ENGINES
from llmopt.serve import Backend, Failure, LaunchContext, engine_threads, gguf_file
from llmopt.serve.options import Switch

SERVER = Path(__file__).parent / "shims" / "llamacpp_server.py"
DEFAULT_CONTEXT = 1024


def command(context: LaunchContext) -> ServerCommand:
    """The context is given per slot: llama.cpp divides ``-c`` by ``-np``."""
    options = context.options
    threads = engine_threads(options)
    own = shutil.which("llama-server")
    start = [own] if own else [context.python, str(SERVER)]
    argv = [
        *start,
        *("-m", str(gguf_file(context.artifact))),
        *("--host", context.host, "--port", str(context.port)),
        *("-c", str(options.max_num_seqs * (options.max_model_len or DEFAULT_CONTEXT))),
        "--metrics",
        *BACKEND.arguments(replace(options, threads=threads)),
    ]
    return ServerCommand(
        argv=tuple(argv),
        base_url=f"http://{context.host}:{context.port}/v1",
        model=Path(context.artifact.path).name,
        environment=QUIET_ENGINES,
    )


def version(environment: Environment) -> str | None:
    """What the user's own ``llama-server`` says of itself; ``None`` where the wheel is used."""
    own = shutil.which("llama-server")
    if own is None:
        return None
    said = subprocess.run([own, "--version"], capture_output=True, text=True, timeout=20, check=False)
    found = re.search(r"version: (.+)", said.stdout + said.stderr)
    return f"llama-server {found[1] if found else 'of unknown version'}"


BACKEND = Backend(
    name="llamacpp",
    title="llama.cpp server",
    formats=("gguf",),
    needs=Needs(modules=() if shutil.which("llama-server") else ("xllamacpp",), extra="llamacpp"),
    distribution="xllamacpp",
    command=command,
    sequences_reserved=lambda options: options.max_num_seqs,
    flags={"max_num_seqs": "-np", "threads": "-t", "max_model_len": Switch(), "gpu_layers": "-ngl"},
    version=version,
    failures=(
        Failure(pattern=r"couldn't bind|address already in use|bind.*failed", cause="the port is taken", remedy="name another one: --port"),
        Failure(pattern=r"failed to allocate|unable to allocate", cause="memory ran out while loading",
                remedy="a smaller quantization, or a shorter --max-model-len"),
        Failure(pattern=r"error loading model: (.+)|failed to load model", cause="llama.cpp does not load this file", remedy="quantize again"),
    ),
)  # fmt: skip
