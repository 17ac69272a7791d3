"""An engine in its own image: the same words behind ``docker run``."""

from __future__ import annotations

from dataclasses import replace

from llmopt.core.domain import ServerCommand
from llmopt.core.errors import UsageError
from llmopt.serve import MODEL_IN_CONTAINER, Backend, LaunchContext

EVERY_ADDRESS = "0.0.0.0"  # inside: docker publishes it on the loopback address of the host alone


def in_container(backend: Backend, context: LaunchContext, image: str | None = None) -> ServerCommand:
    """The engine's command in ``image``, or in its usual one. Raises UsageError when it has none."""
    container = backend.container
    if container is None:
        raise UsageError(f"llmopt knows no image of {backend.name}", hint="leave --container out")
    inside = backend.command(replace(context, host=EVERY_ADDRESS))
    variables = [word for name, value in inside.environment.items() for word in ("--env", f"{name}={value}")]
    argv = [
        *("docker", "run", "--rm", "--init"),
        *("--publish", f"{context.host}:{context.port}:{context.port}"),
        *("--volume", f"{context.artifact.path}:{MODEL_IN_CONTAINER}:ro"),
        *container.options,
        *variables,
        *(("--entrypoint", container.entrypoint) if container.entrypoint is not None else ()),
        image or container.image,
        *inside.argv,
    ]
    base_url = inside.base_url.replace(EVERY_ADDRESS, context.host)
    return replace(inside, argv=tuple(argv), base_url=base_url, environment={})
