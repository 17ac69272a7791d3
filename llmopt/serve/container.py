"""An engine in its own image: the same words behind ``docker run``.

The model, a draft model and adapters are mounted read-only, the port is published on the loopback address alone, and the
container has a name, so that what a signal to ``docker run`` leaves running is removed.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path

from llmopt.core.domain import ServeOptions, ServerCommand
from llmopt.core.errors import UsageError
from llmopt.serve import FILES_IN_CONTAINER, MODEL_IN_CONTAINER, Backend, LaunchContext
from llmopt.serve.adapters import named_adapters

EVERY_ADDRESS = "0.0.0.0"  # inside: docker publishes it on the loopback address of the host alone
# vLLM, SGLang and TensorRT-LLM send tensors between their processes through /dev/shm, of which docker gives 64 MB.  A size
# of its own and not --ipc=host: what is left there goes with the container.
SHARED_MEMORY = ("--shm-size", "16g")
NVIDIA_GPUS = ("--gpus", "all")


def in_container(backend: Backend, context: LaunchContext, image: str | None = None) -> ServerCommand:
    """The engine's command in ``image``, or in its usual one. Raises UsageError when it has none."""
    container = backend.container
    if container is None:
        raise UsageError(f"llmopt knows no image of {backend.name}", hint="leave --container out")
    options, mounts = carried(context.options)
    inside = backend.command(
        replace(context, environment=None, host=EVERY_ADDRESS, options=options, folder=FILES_IN_CONTAINER)
    )
    mounts = [(context.artifact.path, MODEL_IN_CONTAINER), *mounts]
    if inside.files:
        mounts.append((context.folder, FILES_IN_CONTAINER))
    # Never the name of somebody else's, which the clean-up would remove.
    name = f"llmopt-{backend.name}-{context.port}-{secrets.token_hex(3)}"
    variables = [word for name, value in inside.environment.items() for word in ("--env", f"{name}={value}")]
    argv = [
        *("docker", "run", "--rm", "--init", "--name", name),
        *("--publish", f"{context.host}:{context.port}:{context.port}"),
        *(word for host, place in mounts for word in ("--volume", f"{host}:{place}:ro")),
        *container.options,
        *variables,
        *(("--entrypoint", container.entrypoint) if container.entrypoint is not None else ()),
        image or container.image,
        *inside.argv,
    ]
    return replace(
        inside,
        argv=tuple(argv),
        base_url=inside.base_url.replace(EVERY_ADDRESS, context.host),
        environment={},
        files={path.replace(FILES_IN_CONTAINER, context.folder, 1): text for path, text in inside.files.items()},
        cleanup=("docker", "rm", "--force", name),
    )


def carried(options: ServeOptions) -> tuple[ServeOptions, list[tuple[str, str]]]:
    """The options with absolute paths of a draft and of adapters, which are mounted where they lie on the host.

    Raises UsageError for an adapter that is none.
    """
    mounts = []
    if options.speculative_model and Path(options.speculative_model).exists():
        draft = str(Path(options.speculative_model).resolve())
        mounts.append((draft, draft))
        options = replace(options, speculative_model=draft)
    adapters = [(name, str(place.resolve())) for name, place in named_adapters(options.lora_modules)]
    mounts += [(place, place) for _, place in adapters]
    return replace(options, lora_modules=tuple(f"{name}={place}" for name, place in adapters)), mounts
