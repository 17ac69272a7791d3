"""Programs of one machine: on which port each of them listens, which GPUs a replica gets, and the words that start it.

The gateway has the port that was asked for, replicas count on from the one after it (of a port below 1024 from the one after
8000 above it: 443 has 8444 and on), and what stands beside them from a hundred above, however many replicas there are: a port
that was a replica's is never taken for something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from llmopt.core.errors import UsageError
from llmopt.deploy.plan import GPU_EXPORTER_PORT, Deployment, Launch

HOST = "127.0.0.1"
GPU_EXPORTER = f"{HOST}:{GPU_EXPORTER_PORT}"
LAST_PORT = 65535
# Below it root alone may listen, or who is given that right: the gateway, and nobody beside it.
LOWEST_FREE_PORT = 1024
ABOVE_LOW_PORT = 8000
MOST_REPLICAS, BESIDE, PROGRAMS_BESIDE = 99, 100, 6
# Of replicas that share a machine: the numbers of cores that one was measured on would be those of all the others, too.
# The number of threads stays (vLLM 0.32 on a CPU takes it from OMP_NUM_THREADS then).
SHARED = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Of a deployment on one machine; all but the gateway's on the loopback address."""

    gateway: int
    engines: tuple[int, ...]
    status: int
    litellm: int
    redis: int
    prometheus: int
    alertmanager: int
    canary: int

    @property
    def addresses(self) -> tuple[str, ...]:
        """Of the replicas: ``127.0.0.1:8081``."""
        return tuple(f"{HOST}:{port}" for port in self.engines)


def ports(deployment: Deployment) -> Ports:
    """Raises UsageError where there is no room for them above the gateway's."""
    gateway, replicas = deployment.wishes.port, deployment.replicas
    first = gateway if gateway >= LOWEST_FREE_PORT else gateway + ABOVE_LOW_PORT
    if replicas > MOST_REPLICAS:
        raise UsageError(
            f"{replicas} replicas are more than one machine is given", hint="--target kubernetes, or fewer --replicas"
        )
    after = first + BESIDE
    if after + PROGRAMS_BESIDE > LAST_PORT:
        raise UsageError(
            f"--port {gateway} leaves no ports above it for the programs beside it",
            hint=f"--port 8080, or another up to {LAST_PORT - BESIDE - PROGRAMS_BESIDE}",
        )
    return Ports(
        gateway=gateway,
        engines=tuple(range(first + 1, first + 1 + replicas)),
        status=after,
        litellm=after + 1,
        redis=after + 2,
        prometheus=after + 3,
        alertmanager=after + 4,
        canary=after + 5,
    )


def native(deployment: Deployment, port: int) -> Launch:
    """The measured command on this port, beside the other replicas."""
    launch = deployment.engine.native(HOST, port)
    if deployment.replicas == 1:
        return launch
    return replace(launch, environment={name: SHARED.get(name, value) for name, value in launch.environment.items()})


def replica(deployment: Deployment, number: int, port: int) -> Launch:
    """Replica ``number``, from 0: the measured command with GPUs of its own."""
    launch, gpus = native(deployment, port), deployment.engine.gpus
    if not gpus:
        return launch
    own = ",".join(str(number * gpus + i) for i in range(gpus))
    return replace(launch, environment={**launch.environment, "CUDA_VISIBLE_DEVICES": own})


def env_words(environment: Mapping[str, str]) -> tuple[str, ...]:
    """``env`` and NAME=VALUE of each: a process is given exactly these beside its own."""
    return ("env", *(f"{name}={value}" for name, value in environment.items())) if environment else ()


def doubts(deployment: Deployment) -> tuple[str, ...]:
    """NVIDIA's exporter is a container, or a package of NVIDIA's own."""
    if not (deployment.wishes.monitoring and deployment.engine.gpus):
        return ()
    return (
        f"no alert and no panel tells of GPUs until NVIDIA's dcgm-exporter answers at {GPU_EXPORTER}: it is not started here",
    )


def refusal(deployment: Deployment) -> str | None:
    """Why the programs of one machine cannot be this deployment; ``None`` when they can."""
    engine = deployment.engine
    if engine.backend == "triton":
        return "triton's frontend is a script inside its image: it has no command outside a container"
    if ".." in engine.artifact.split("/"):
        return f"{engine.artifact} is no plain path"
    return None
