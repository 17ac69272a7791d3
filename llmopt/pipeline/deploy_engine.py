"""The measured engine as a deployment has it: its words on this kind of machine, its words in an image, and the image."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from llmopt import serve
from llmopt.core import environments
from llmopt.core.artifacts import fingerprint, open_artifact
from llmopt.core.domain import Artifact, ServeOptions, ServerCommand, stable_hash
from llmopt.core.environments import Environment
from llmopt.core.errors import MissingEnvironment, ModelError, UsageError
from llmopt.core.files import read_text
from llmopt.deploy.plan import ENGINE_PORT, Engine, Image, Launch
from llmopt.deploy.templates import render
from llmopt.pipeline.deploy_source import Chosen
from llmopt.pipeline.hosting import ELSEWHERE
from llmopt.pipeline.measured_row import MeasuredCase, Ran, Served
from llmopt.pipeline.measuring import version_of
from llmopt.serve import FILES_IN_CONTAINER, Backend, LaunchContext, Recipe
from llmopt.serve.container import EVERY_ADDRESS, carried
from llmopt.serve.options import require_known
from llmopt.serve.vllm_arguments import whole_arguments

BLOTTED = "***"  # in the place of a secret that a record does not hold
THREADS = re.compile("[1-9][0-9]{0,4}")
SHM = re.compile(r"(\d+)g")
GIB = 1 << 30
EMBEDDED = ("vllm", "rayserve")  # what Ray Serve LLM runs inside itself
# Of vLLM on processors: a container gets its cores from whoever runs it, and the numbers of those that measured are others'.
THREADS_ELSEWHERE = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is deployed, as llmopt.serve knows it; ``environment`` is ``None`` where the engine is not on this machine.

    ``device``: what it ran on, cpu or cuda.  ``doubts``: sentences for the README.
    """

    backend: Backend
    artifact: Artifact
    options: ServeOptions
    environment: Environment | None
    version: str | None
    device: str
    freeze: Mapping[str, str]
    doubts: tuple[str, ...]


def subject_of(chosen: Chosen, *, artifact: Path | None = None) -> Subject:
    """Raises UsageError for what cannot be deployed, ModelError where the weights are gone or have become others."""
    case = chosen.row.case
    name, version = case.serve.backend, case.backend.version
    if name not in serve.BACKENDS or name == "scripted":
        what = {
            "url": "a server that llmopt did not start: its command is not known",
            "scripted": "the scripted fake, which serves no model",
        }
        raise UsageError(
            f"{chosen.source} was measured on {what.get(name, f'{name}, an engine that this llmopt does not know')}",
            hint="deploy what llmopt started itself: llmopt bench, llmopt tune",
        )
    backend = serve.backend(name)
    options = pinned_options(backend, case, chosen.ran)
    require_known(backend, options)
    if any(BLOTTED in word for word in (*options.extra_args, *options.lora_modules)):
        raise UsageError(
            "the measured command had a secret in it, which its record does not hold",
            hint="measure it without: engines read keys from their environment too",
        )
    found = opened(case.artifact, artifact)
    environment = environment_of(backend)
    return Subject(
        backend=backend,
        artifact=found,
        options=options,
        environment=environment,
        version=version,
        device="cuda" if chosen.machine.gpus else "cpu",
        freeze=freeze_of(chosen.ran, environment),
        doubts=tuple(doubts_of(backend, environment, version, case, chosen.ran)),
    )


def environment_of(backend: Backend) -> Environment | None:
    try:
        return environments.find(backend.needs)
    except MissingEnvironment:
        return None


def pinned_options(backend: Backend, case: MeasuredCase, ran: Ran | None) -> ServeOptions:
    """The measured options; threads that were left to llmopt are those that it chose then, on that machine."""
    options, flag = case.serve, backend.flags.get("threads")
    if options.threads is not None or flag is None:
        return options
    argv = case.backend.argv or []
    told = (
        argv[argv.index(flag) + 1]
        if isinstance(flag, str) and flag in argv[:-1]
        else (ran.environment if ran else {}).get("OMP_NUM_THREADS", "")
    )
    return replace(options, threads=int(told)) if THREADS.fullmatch(told) else options


def opened(record: Served, elsewhere: Path | None) -> Artifact:
    """The weights that were measured, where they lay or where they lie now. Raises ModelError, UsageError."""
    place = elsewhere or (Path(record.path) if record.path else None)
    if place is None:
        raise UsageError(
            f"the record of {record.label or record.quantization} does not say where its weights lie",
            hint="--artifact DIR, the folder of these very weights",
        )
    try:
        found = open_artifact(place)
    except (ModelError, OSError) as error:  # OSError: a name that no file system takes
        if isinstance(error, ModelError) and place.is_dir():
            raise
        raise ModelError(
            f"the weights that were measured are not at {place}", hint="--artifact DIR, where they lie now"
        ) from error
    if found.key != record.key:
        raise ModelError(
            f"{place} holds other weights than were measured (key {found.key}, not {record.key})",
            hint="--artifact DIR, the folder of the measured ones; or measure these: llmopt bench",
        )
    return found


def freeze_of(ran: Ran | None, environment: Environment | None) -> Mapping[str, str]:
    """Name → version of what the engine ran with: of the record, else of its environment here."""
    if ran is not None and ran.freeze:
        return ran.freeze
    return environments.freeze(environment) if environment else {}


def doubts_of(
    backend: Backend, environment: Environment | None, version: str | None, case: MeasuredCase, ran: Ran | None
) -> list[str]:
    found = []
    here = version_of(backend, environment) if environment else None
    if here is not None and version is not None and here != version:
        found.append(f"measured with {backend.name} {version}; here is {here}")
    if doubt := backend.doubt(version):
        found.append(doubt)
    if ran is None:
        found.append("the run's record was not found: what is pinned comes from the ranking alone")
    if case.backend.note:
        found.append(case.backend.note)
    return found


# --- from a subject to an engine ------------------------------------------------------------------------------------


def engine_of(subject: Subject, *, folder: Path, gpus_of_machine: int) -> tuple[Engine, tuple[str, ...]]:
    """The engine, and what its image leaves in doubt. ``folder``: where files that it reads from go on a machine."""
    backend, artifact = subject.backend, subject.artifact
    native = native_launcher(subject, folder)
    image, doubts = image_of(subject)
    inside, mounts = inside_launch(subject) if image is not None else (None, ())
    in_memory = artifact.quantization.format == "in-memory"
    command = native_command(subject, folder, "127.0.0.1", ENGINE_PORT)
    place, key = (artifact.base, artifact.base_fingerprint) if in_memory else (artifact.path, artifact.key)
    beside = {mounted: files_below(Path(mounted)) for mounted, _ in mounts}
    engine = Engine(
        backend=backend.name,
        title=backend.title,
        version=subject.version,
        native=native,
        inside=inside,
        image=image,
        model=command.model,
        artifact=place,
        artifact_bytes=artifact.size_bytes,
        health_path=command.health_path,
        metrics_path=backend.metrics_path if backend.metrics else None,
        metrics=dict(backend.metrics),
        histogram_bounds=dict(backend.bounds),
        gpus=gpus_of(subject, gpus_of_machine),
        threads=subject.options.threads,
        max_num_seqs=subject.options.max_num_seqs,
        max_model_len=subject.options.max_model_len,
        mounts=mounts,
        arguments=whole_arguments(subject.options) if backend.name in EMBEDDED else None,
        weights={place: key} | {mounted: fingerprint(files) for mounted, files in beside.items()},
        mounts_bytes=sum(file.stat().st_size for files in beside.values() for file in files),
    )
    return engine, doubts


def files_below(place: Path) -> list[Path]:
    """The place itself where it is a file."""
    return sorted(found for found in (place, *place.rglob("*")) if found.is_file())


def gpus_of(subject: Subject, there: int) -> int:
    options = subject.options
    if subject.device == "cpu" or options.gpu_layers == 0:
        return 0
    if options.device_map in ("auto", "balanced"):
        return there
    return (options.tensor_parallel_size or 1) * (options.pipeline_parallel_size or 1)


def native_launcher(subject: Subject, folder: Path) -> Callable[[str, int], Launch]:
    def native(host: str, port: int) -> Launch:
        return launch_of(native_command(subject, folder, host, port))

    return native


def native_command(subject: Subject, folder: Path, host: str, port: int) -> ServerCommand:
    return subject.backend.command(
        LaunchContext(
            artifact=subject.artifact,
            options=subject.options,
            environment=subject.environment or ELSEWHERE,
            host=host,
            port=port,
            folder=str(folder / "engine-files" / str(port)),
        )
    )


def launch_of(command: ServerCommand) -> Launch:
    return Launch(argv=command.argv, environment=dict(command.environment), files=dict(command.files))


def inside_launch(subject: Subject) -> tuple[Launch, tuple[tuple[str, str], ...]]:
    """The command as it is in the image, and what is mounted beside the model."""
    options, mounts = carried(subject.options)
    command = subject.backend.command(
        LaunchContext(
            artifact=subject.artifact,
            options=options,
            environment=None,
            host=EVERY_ADDRESS,
            port=ENGINE_PORT,
            folder=FILES_IN_CONTAINER,
        )
    )
    launch = launch_of(command)
    if subject.backend.name == "vllm" and subject.device == "cpu":
        native = native_command(subject, Path(FILES_IN_CONTAINER), EVERY_ADDRESS, ENGINE_PORT)
        own = {name: value for name, value in native.environment.items() if name not in THREADS_ELSEWHERE}
        launch = replace(launch, environment={**own, **THREADS_ELSEWHERE})
    return launch, tuple(mounts)


# --- its image ------------------------------------------------------------------------------------------------------


def image_of(subject: Subject) -> tuple[Image | None, tuple[str, ...]]:
    """By the measured version where its tags tell it, else llmopt's own choice with a doubt; or made by a recipe."""
    container, device = subject.backend.container, subject.device
    usable = container is not None and (device in container.devices or (device == "cuda" and container.on_cuda))
    if container is not None and usable:
        by_version = container.of_version(subject.version) if subject.version else None
        name = by_version or container.image
        if device not in container.devices and container.on_cuda:
            name = by_version.replace(":server-", ":server-cuda-") if by_version else container.on_cuda
        doubts = () if by_version else (unmatched(subject, name),)
        sizes = [
            SHM.fullmatch(after)
            for word, after in zip(container.options, container.options[1:], strict=False)
            if word == "--shm-size"
        ]
        image = Image(
            name=name,
            entrypoint=container.entrypoint,
            gpu=device == "cuda",
            shared_memory_bytes=int(sizes[0][1]) * GIB if sizes and sizes[0] else None,
            probe=container.probe,
        )
        return image, doubts
    recipe = subject.backend.recipes.get(device)
    return built(subject, recipe) if recipe is not None else (None, ())


def unmatched(subject: Subject, image: str) -> str:
    version = subject.version or "of unknown version"
    return f"in a container it is {image}: no tag of it tells the measured {subject.backend.title} {version}, so flags and speed may differ"


def built(subject: Subject, recipe: Recipe) -> tuple[Image, tuple[str, ...]]:
    """By a Dockerfile, with the measured packages pinned."""
    wanted = (*recipe.packages, *recipe.of_format.get(subject.artifact.quantization.format, ()))
    pins = {normal(name): version.partition("+")[0] for name, version in subject.freeze.items()}
    known = [name for name in wanted if normal(name) in pins]
    lines = [f"{name}=={pins[normal(name)]}" for name in known]
    missing = [name for name in wanted if normal(name) not in pins]
    version = subject.version or "unpinned"
    image = Image(
        name=f"llmopt-{subject.backend.name}:{re.sub(r'[^A-Za-z0-9_.-]+', '-', version)}",
        build=render(
            recipe.template,
            title=subject.backend.title,
            first=lines[0] if known[:1] == [recipe.packages[0]] else recipe.packages[0],
            system_packages=recipe.system_packages,
            unwanted=recipe.unwanted,
            files=sorted(recipe.files),
            gpu=subject.device == "cuda",
            port=ENGINE_PORT,
        ),
        context={
            "requirements.txt": "".join(f"{line}\n" for line in (*lines, *missing)),
            "constraints.txt": "".join(
                f"{name}=={version}\n" for name, version in sorted(pins.items()) if installable(name)
            ),
            **{name: read_text(place) for name, place in sorted(recipe.files.items())},
        },
        gpu=subject.device == "cuda",
        probe=recipe.probe,
    )
    # An image that is there is neither built nor fetched anew by its name alone: another recipe is another name.
    image = replace(image, name=f"{image.name}-{stable_hash([image.build, image.context], 8)}")
    doubts = ["its image is made by the Dockerfile beside, which was not built where this was written"]
    if missing:
        doubts.append(f"the measured versions of {', '.join(missing)} are not recorded: the image takes today's")
    return image, tuple(doubts)


def normal(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installable(name: str) -> bool:
    """llmopt itself is copied, not installed; ``vllm`` beside its CPU build is a stand-in of ours that nobody has."""
    return name not in ("llmopt", "vllm")
