"""A fake engine of known speed, for tests and conformance: it loads nothing and says so in its name.

Its extra arguments script it: ``--ttft-ms 50 --tpot-ms 5``, a trap (``--trap NAME``, see ``--list-traps``), or a fault
(``--fault die|hang|cut|error``).  So does the model's name of one request: ``scripted?ttft_ms=50&trap=crlf``.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from llmopt.core.domain import ServerCommand
from llmopt.core.environments import Needs
from llmopt.core.errors import ServerError
from llmopt.core.process import KeptProcess
from llmopt.serve import Backend, Failure, LaunchContext
from llmopt.serve.options import Switch
from llmopt.serve.process import HOST, answers, free_port

SERVER = Path(__file__).parent / "shims" / "scripted_server.py"


def command(context: LaunchContext) -> ServerCommand:
    return ServerCommand(
        argv=(
            *(sys.executable, str(SERVER), "--host", context.host, "--port", str(context.port)),
            *BACKEND.arguments(context.options),
        ),
        base_url=context.base_url,
        model="scripted",
        usage_per_chunk=True,
        ready_timeout_s=20,
    )


BACKEND = Backend(
    name="scripted",
    title="scripted fake of known speed (tests only)",
    formats=("plain", "compressed-tensors", "bitsandbytes", "gguf"),
    needs=Needs(modules=(), extra="dev"),
    distribution="llmopt",
    command=command,
    flags={"max_num_seqs": "--max-num-seqs", "max_model_len": Switch()},
    metrics={
        key: f"scripted:{key}"
        for key in (
            "time_to_first_token", "inter_token_latency", "queue_time", "prefill_time", "decode_time", "e2e_time",
            "prefix_cache_queries", "prefix_cache_hits", "preemptions", "kv_cache_usage", "running", "waiting",
        )
    },
    failures=(Failure(pattern=r"scripted death: (.+)", cause="it was told to die", remedy="take --fault away"),),
)  # fmt: skip


@contextlib.contextmanager
def running(*arguments: str, slots: int = 4096, patience_s: float = 20) -> Iterator[str]:
    """The base URL of a scripted server that lives as long as the ``with`` block. Raises ServerError."""
    port = free_port(None)
    argv = (sys.executable, str(SERVER), "--port", str(port), "--max-num-seqs", str(slots), *arguments)
    with (
        tempfile.TemporaryDirectory(prefix="llmopt-scripted-") as folder,
        KeptProcess(argv, log=Path(folder) / "log") as process,
    ):
        deadline = time.monotonic() + patience_s
        while not answers(f"http://{HOST}:{port}/health"):
            if not process.running or time.monotonic() > deadline:
                raise ServerError(f"the scripted server did not start: {' '.join(process.log_tail(3))}")
            process.wait(0.02)
        yield f"http://{HOST}:{port}/v1"
