"""A fake engine of known speed, for tests and conformance: it loads nothing and says so in its name.

Its extra arguments script it: ``--ttft-ms 50 --tpot-ms 5``, or a fault (``--fault die|hang|cut|error``).
"""

from __future__ import annotations

import sys
from pathlib import Path

from llmopt.core.domain import ServerCommand
from llmopt.core.environments import Needs
from llmopt.serve import Backend, Failure, LaunchContext

SERVER = Path(__file__).parent / "shims" / "scripted_server.py"


def command(context: LaunchContext) -> ServerCommand:
    return ServerCommand(
        argv=(
            *(sys.executable, str(SERVER), "--host", context.host, "--port", str(context.port)),
            *("--max-num-seqs", str(context.options.max_num_seqs)),
            *context.options.extra_args,
        ),
        base_url=f"http://{context.host}:{context.port}/v1",
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
    failures=(Failure(pattern=r"scripted death: (.+)", cause="it was told to die", remedy="take --fault away"),),
)
