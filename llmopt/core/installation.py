"""The steps by which an environment is made: each can be repeated, and one that is done does nothing when it is."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from llmopt.core import llamacpp_source
from llmopt.core.blueprints import Blueprint, requirements
from llmopt.core.errors import LlmoptError
from llmopt.core.files import disk_errors
from llmopt.core.interpreters import Environment, ask
from llmopt.core.process import KeptProcess

VENV = (sys.executable, "-m", "venv")
INSTALLER = "llmopt"  # what our own metadata names as its installer


@dataclass(kw_only=True)
class Site:
    """An environment that is being worked on. ``lock`` is a file of constraints, or ``None``."""

    environment: Environment
    log: Path
    lock: Path | None
    report: Callable[[str], None]
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def pip(self) -> list[str]:
        return [str(self.environment.python), "-m", "pip", "--disable-pip-version-check"]

    @functools.cached_property
    def download(self) -> tuple[KeptProcess, Path]:
        """llama.cpp's sources on their way: mostly waiting for the network, so they come beside the other steps."""
        folder = self.stack.enter_context(tempfile.TemporaryDirectory())
        command = llamacpp_source.download_command(self.pip, folder)
        return self.stack.enter_context(KeptProcess(command, log=self.log.with_suffix(".source.log"))), Path(folder)

    def archive(self) -> Path:
        process, folder = self.download
        finish(process)
        return llamacpp_source.checked(next(folder.glob("*.tar.gz")))

    def run(self, argv: list[str], environment: Mapping[str, str] | None = None) -> None:
        """Run to the end; nothing of it outlives us. Raises LlmoptError with its last words."""
        with KeptProcess(argv, log=self.log, environment=environment) as process:
            finish(process)

    def install(self, *what: str) -> None:
        """With uv where it is on the PATH; pip does it where uv fails, which knows nothing of pip's configuration."""
        constraint = ["-c", str(self.lock)] if self.lock else []
        if uv := shutil.which("uv"):
            try:
                return self.run([uv, "pip", "install", "--python", str(self.environment.python), *constraint, *what])
            except LlmoptError as error:
                self.report(f"uv could not do it, pip goes on ({error.message})")
        return self.run([*self.pip, "install", *constraint, *what])


def finish(process: KeptProcess) -> None:
    if process.wait():
        lines = [line.strip() for line in process.log_tail(10_000) if line.strip()]
        reasons = [line for line in lines if line.lower().startswith("error")]
        word = (reasons or lines or ["no output"])[-1]
        raise LlmoptError(f"{' '.join(process.argv[1:4])} failed: {word}", hint=f"the whole output is in {process.log}")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step. It is done while ``inputs`` are what they were; an optional one may fail, and says what is lost."""

    name: str
    title: str
    run: Callable[[Site], None]
    inputs: tuple[str, ...] = ()
    optional: str = ""
    source: bool = False

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.inputs).encode()).hexdigest()[:16]


def steps(blueprint: Blueprint, *, lock: Path | None, build: bool, here: bool, cuda: bool) -> list[Step]:
    """What makes this environment, in order.

    torch goes first, alone and by pip: the packages after it then keep the build that is there.
    """
    pins = requirements(blueprint.extras)
    torch = [pin for pin in pins if pin.startswith("torch==")]
    locked = lock.read_text() if lock else ""
    packages = (*pins, locked)
    found = [] if here else [Step(name="venv", title="making a virtual environment", run=make_venv)]
    if torch:
        # Its build is chosen by pip's own configuration, which uv does not read.
        run = functools.partial(install_torch, pins=torch)
        found.append(Step(name="torch", title="installing torch", run=run, inputs=tuple(torch)))
    title = f"installing {len(pins) - len(torch)} packages and what they need"
    found.append(Step(name="packages", title=title, run=lambda site: site.install(*pins), inputs=packages))
    if blueprint.compiled:
        compiled = [pin for pin in requirements(blueprint.compiled) if pin not in pins]
        found.append(
            Step(
                name="compiled",
                title=f"compiling {', '.join(compiled)}",
                run=functools.partial(install_compiled, pins=[*pins, *compiled]),
                inputs=(*packages, *compiled),
                optional=", ".join(compiled),
            )
        )
    if blueprint.unwanted or blueprint.stands_for:
        run = functools.partial(fit, blueprint=blueprint)
        found.append(Step(name="fit", title="taking out what breaks it", run=run, inputs=packages))
    if blueprint.converter:
        inputs = (llamacpp_source.LLAMA_CPP_SHA256,)
        found.append(
            Step(
                name="converter", title="fetching llama.cpp's converter", run=add_converter, inputs=inputs, source=True
            )
        )
    if build:
        settings = llamacpp_source.build_settings(cuda=cuda)
        found.append(
            Step(
                name="build",
                title="compiling llama.cpp and its tools",
                run=functools.partial(build_llama_cpp, settings=settings),
                inputs=(llamacpp_source.LLAMA_CPP_SHA256, settings["CMAKE_ARGS"]),
                source=True,
            )
        )
    return found


def make_venv(site: Site) -> None:
    site.run([*VENV, str(site.environment.prefix)])


def install_torch(site: Site, *, pins: list[str]) -> None:
    site.run([*site.pip, "install", *(["-c", str(site.lock)] if site.lock else []), *pins])


def install_compiled(site: Site, *, pins: list[str]) -> None:
    """Raises LlmoptError without a compiler."""
    if llamacpp_source.c_compiler() is None:
        raise LlmoptError("no C compiler on the PATH")
    site.install("setuptools", "wheel")
    site.install("--no-build-isolation", *pins)


def fit(site: Site, *, blueprint: Blueprint) -> None:
    """Take out the unwanted packages, and let one distribution answer for another one's name."""
    if blueprint.unwanted:
        site.run([*site.pip, "uninstall", "-y", *blueprint.unwanted])
    if blueprint.stands_for:
        stand_in(site.environment, *blueprint.stands_for)


def stand_in(environment: Environment, wanted: str, present: str) -> None:
    """Metadata under the name ``wanted`` for what ``present`` installed; "cpu" in its version tells vLLM its platform."""
    version = ask(environment, f"import importlib.metadata as m; print(m.version({present!r}))").strip()
    version = version if "cpu" in version else f"{version}+cpu"
    folder = environment.site_packages / f"{wanted}-{version}.dist-info"
    files = {
        "METADATA": f"Metadata-Version: 2.1\nName: {wanted}\nVersion: {version}\nSummary: stands for {present}\n",
        "INSTALLER": f"{INSTALLER}\n",
    }
    record = "".join(f"{folder.name}/{name},,\n" for name in [*files, "RECORD"])
    with disk_errors(folder):
        for old in environment.site_packages.glob(f"{wanted}-*.dist-info"):
            shutil.rmtree(old)
        folder.mkdir()
        for name, text in (files | {"RECORD": record}).items():
            (folder / name).write_text(text)


def add_converter(site: Site) -> None:
    if not (site.environment.converter / "convert_hf_to_gguf.py").exists():
        llamacpp_source.unpack_converter(site.archive(), site.environment.converter)


def build_llama_cpp(site: Site, *, settings: Mapping[str, str]) -> None:
    """Raises MissingEnvironment, or LlmoptError with the compiler's last words."""
    llamacpp_source.require_build_tools()
    archive = site.archive()
    # A wheel that pip once built with other settings must not be taken for this one.
    site.run([*site.pip, "uninstall", "-y", llamacpp_source.LLAMA_CPP_SOURCE.partition("==")[0]])
    constraint = ["-c", str(site.lock)] if site.lock else []
    site.run([*site.pip, "install", "--no-cache-dir", *constraint, str(archive)], environment=settings)


def drop_torn_packages(environment: Environment) -> list[str]:
    """Forget the packages whose installation was cut off, so that the next one does not take them for whole.

    An installer that is killed leaves metadata without a list of files, or files of the list that are not there.
    """
    torn = []
    for folder in environment.site_packages.glob("*.dist-info"):
        record = folder / "RECORD"
        if record.exists():
            names = [line.rpartition(",")[0].rpartition(",")[0].strip('"') for line in record.read_text().splitlines()]
            whole = all((environment.site_packages / n).exists() for n in names if n and not n.endswith(".pyc"))
        else:
            whole = False
        if not whole:
            shutil.rmtree(folder, ignore_errors=True)
            torn.append(folder.name.removesuffix(".dist-info"))
    for left in environment.site_packages.glob("~*"):  # pip's name for what it was about to remove
        shutil.rmtree(left, ignore_errors=True)
    return torn
