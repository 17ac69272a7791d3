"""Services of systemd: a template unit whose instances are the replicas, named by their ports, nginx before them, one target.

``install.sh`` says what it does and does it; until it is run nothing of the system is touched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath

from llmopt.core.errors import UsageError
from llmopt.deploy import Target, local, shell
from llmopt.deploy.local import HOST, Ports
from llmopt.deploy.plan import Deployment, File, Launch
from llmopt.deploy.templates import render, systemd_word

# Two ports that no words have: the places where the words for them differ are where the port goes.
ONE, OTHER = 64901, 64902
OF_RUN = ("setsid", "flock", "redis-cli")  # tools of run.sh alone
STOP_S = 60  # that an engine gets before it is killed
# Folders that a unit has of its own with PrivateTmp=, in a word that may hold more than one path.
TEMPORARY = re.compile(r"(?<![\w.])/(?:var/)?tmp(?:/|$)")
# That shell.programs_of ever gives, beside the replicas.
EVERY_PROGRAM = ("gateway", "litellm", "redis", "prometheus", "alertmanager", "canary")
# Program → how it is stopped: nginx answers what it has begun.
STOPS = {"gateway": "SIGQUIT"}


def files(deployment: Deployment) -> Mapping[str, File]:
    """Units under ``units/``, ``install.sh``, and what the programs read. Raises UsageError."""
    ports = local.ports(deployment)
    read = {
        "completion.json": File(text=shell.completion(deployment)),
        "wait-ready.sh": File(text=render("wait-ready.sh"), executable=True),
        **shell.documents(deployment, ports, places(deployment)),
    }
    units = dict(units_of(deployment, ports))
    place = f"{settings(deployment)}, which root alone may read,"
    wanted = shell.settings(deployment, place, places(deployment))
    return {
        **{f"units/{name}": File(text=text) for name, text in units.items()},
        "install.sh": File(text=install(deployment, ports, sorted(units), sorted(read)), executable=True),
        **({"settings.env.example": File(text=wanted)} if wanted else {}),
        **read,
    }


def folder(deployment: Deployment) -> str:
    """Where ``install.sh`` puts what the services read."""
    return f"/opt/llmopt/{deployment.name}"


def unit_name(deployment: Deployment) -> str:
    return f"llmopt-{deployment.name}"


def user(deployment: Deployment) -> str:
    """A system user's name: at most 31 characters, and none of another deployment."""
    name = unit_name(deployment)
    if len(name) <= 31:
        return name
    from llmopt.core.domain import stable_hash

    return f"{name[:22].rstrip('-')}-{stable_hash(name, 8)}"


def settings(deployment: Deployment) -> str:
    return f"/etc/{unit_name(deployment)}/settings.env"


def places(deployment: Deployment) -> shell.Places:
    """The journal takes the log of requests; what is secret lies in /etc, for whoever installs to put there."""
    own = f"/etc/{unit_name(deployment)}"
    return shell.Places(
        access_log="syslog:server=unix:/dev/log,nohostname,tag=llmopt_gateway",
        certificate=(f"{own}/tls.crt", f"{own}/tls.key"),
        keys=f"{own}/keys.conf",
        webhook_file=f"{own}/alert_webhook_url",
    )


def read_places(deployment: Deployment) -> list[str]:
    """What the engine reads, by the names that its words have for it: the weights, and drafts or adapters beside them."""
    return [deployment.engine.artifact, *(here for here, _ in deployment.engine.mounts)]


def reads_temporary(deployment: Deployment) -> bool:
    """Whether something that it is started with lies where a unit of its own /tmp would not see it."""
    launch = deployment.engine.native(HOST, ONE)
    return any(TEMPORARY.search(w) for w in (*launch.argv, *launch.environment.values(), *read_places(deployment)))


def doubts(deployment: Deployment) -> tuple[str, ...]:
    if not reads_temporary(deployment):
        return local.doubts(deployment)
    return (
        *local.doubts(deployment),
        "what the engine reads lies below /tmp or /var/tmp, which machines empty by themselves, at a start or by age:"
        " the services do not start any more then",
    )


def units_of(deployment: Deployment, ports: Ports) -> Iterator[tuple[str, str]]:
    name = unit_name(deployment)
    yield f"{name}@.service", engine_unit(deployment)
    for program in shell.programs_of(deployment, ports):
        if not program.name.startswith("engine_"):
            yield f"{name}-{program.name}.service", program_unit(deployment, program, ports)
    yield f"{name}.target", target_unit(deployment)


def engine_unit(deployment: Deployment) -> str:
    launch = instance(deployment)
    return render(
        "engine.service",
        title=deployment.evidence.label,
        description=deployment.evidence.label,
        unit=unit_name(deployment),
        user=user(deployment),
        folder=folder(deployment),
        cache=unit_name(deployment),
        settings=settings(deployment),
        environment=launch.environment,
        command=command_line(with_port(one, other) for one, other in zip(*both(deployment), strict=True)),
        ready_s=round(deployment.ready_timeout_s),
        stop_s=STOP_S,
        memory_bytes=deployment.memory_limit_bytes,
        gpus=deployment.engine.gpus,
        reads_temporary=reads_temporary(deployment),
    )


def instance(deployment: Deployment) -> Launch:
    """Raises UsageError for an engine whose files or environment name the port: a template has one of them for all."""
    one, other = (local.native(deployment, port) for port in (ONE, OTHER))
    if one.files:
        raise UsageError(
            f"{deployment.engine.title} reads options from a file of each replica, which a template unit has not",
            hint="--target shell, or compose",
        )
    if one.environment != other.environment or len(one.argv) != len(other.argv):
        raise UsageError(f"the command of {deployment.engine.title} depends on its port", hint="--target shell")
    return one


def both(deployment: Deployment) -> tuple[Sequence[str], Sequence[str]]:
    return deployment.engine.native(HOST, ONE).argv, deployment.engine.native(HOST, OTHER).argv


def with_port(one: str, other: str) -> str:
    """A word of ``ExecStart=`` with ``%i`` where the words for two ports differ."""
    if one == other:
        return systemd_word(one)
    parts = one.split(str(ONE))
    if str(OTHER).join(parts) != other:
        raise UsageError(f"the command has {one!r} for one port and {other!r} for another", hint="--target shell")
    return '"' + "%i".join(systemd_word(part)[1:-1] for part in parts) + '"'


def command_line(words: Iterable[str]) -> str:
    """Quoted words as ``ExecStart=`` takes them: in the program's own path ``$`` stands for itself (systemd.service(5))."""
    program, *others = words
    return " ".join([program.replace("$$", "$"), *others])


def program_unit(deployment: Deployment, program: shell.Program, ports: Ports) -> str:
    name = unit_name(deployment)
    state = f"{name}-{program.name}"
    words = placed(program, folder(deployment), f"/var/lib/{state}")
    reload = "/bin/kill -HUP $MAINPID" if program.name in ("gateway", "prometheus", "alertmanager") else ""
    return render(
        "program.service",
        title=deployment.evidence.label,
        description=f"{program.name} of {deployment.name}",
        unit=name,
        user=user(deployment),
        folder=folder(deployment),
        settings=settings(deployment),
        command=command_line(map(systemd_word, words)),
        reload=reload,
        state=state,
        after=before_canary(deployment, ports) if program.name == "canary" else [],
        secrets=shell.secrets(deployment) if program.name == "litellm" else [],
        answers=program.asked if program.name == "litellm" else None,
        stop_signal=STOPS.get(program.name, "SIGTERM"),
        # It reads the tokenizer of the weights.
        reads_temporary=program.name == "canary" and reads_temporary(deployment),
        low_port=program.name == "gateway" and program.port < local.LOWEST_FREE_PORT,
    )


def before_canary(deployment: Deployment, ports: Ports) -> list[str]:
    """What it is not answered while they start is an error of the service's, and somebody is called."""
    name = unit_name(deployment)
    through = [f"{name}-litellm.service"] if deployment.wishes.gateway == "litellm" else []
    return [*(f"{name}@{port}.service" for port in ports.engines), *through, f"{name}-gateway.service"]


def placed(program: shell.Program, read: str, written: str) -> list[str]:
    """The words of run.sh, with what is written in the service's own folder: the one that is read from is root's."""
    if program.name == "gateway":
        return ["nginx", "-e", "stderr", "-p", written, "-c", f"{read}/nginx.conf"]
    return [w.replace("=run/", f"={written}/") if w.startswith("--storage") else w for w in program.words]


def target_unit(deployment: Deployment) -> str:
    return f"[Unit]\nDescription=all of {deployment.name}, written by llmopt\n\n[Install]\nWantedBy=multi-user.target\n"


def install(deployment: Deployment, ports: Ports, units: Sequence[str], read: Sequence[str]) -> str:
    name, gpus = unit_name(deployment), deployment.engine.gpus
    instances = [f"{name}@{port}.service" for port in ports.engines]
    instances += [unit for unit in units if unit.endswith(".service") and "@" not in unit]
    launch = deployment.engine.native(HOST, ONE)
    programs = list(shell.programs_of(deployment, ports))
    tools = ["systemctl", "runuser", *(tool for tool in shell.tools(deployment) if tool not in OF_RUN)]
    program, engine = launch.argv[0], deployment.engine
    # One that is named without its place is looked for as all the others are.
    sought = {} if PurePosixPath(program).is_absolute() else {program: f"{engine.title} {engine.version or ''}".strip()}
    return render(
        "install.sh",
        title=deployment.evidence.label,
        unit=name,
        user=user(deployment),
        folder=folder(deployment),
        settings=settings(deployment),
        settings_folder=str(PurePosixPath(settings(deployment)).parent),
        every_program=EVERY_PROGRAM,
        units=units,
        instances=instances,
        files=[*read, "README.md", "deployment.json"],
        places=[*(() if sought else (program,)), *read_places(deployment)],
        optional=[(p.words[0], f"{name}-{p.name}.service") for p in programs if p.optional],
        tools=[*tools, *sought],
        installs={**shell.installs(deployment, programs, tools), **sought},
        too_old_alertmanager=shell.TOO_OLD_ALERTMANAGER,
        gpus=[(port, ",".join(str(n * gpus + i) for i in range(gpus))) for n, port in enumerate(ports.engines)]
        if gpus
        else [],
        url=shell.url(deployment),
        own_files=shell.own_files(deployment, places(deployment)),
        secrets=shell.secrets(deployment),
        canary_shows_key=shell.canary_shows_key(deployment),
        webhook=places(deployment).webhook_file if deployment.wishes.monitoring else None,
    )


TARGET = Target(
    name="systemd",
    title="services of systemd on one machine",
    refusal=local.refusal,
    files=files,
    start=lambda deployment: ("sudo", "./install.sh"),
    url=shell.url,
    doubts=doubts,
    secrets=lambda deployment: shell.secret_places(deployment, settings(deployment), places(deployment)),
)
