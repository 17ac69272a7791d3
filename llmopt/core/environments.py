"""Find and describe the Python environments in which engines and quantizers live.

An adapter says what it needs (``Needs``); ``find`` looks, in this order, at an interpreter that the user names, at
this one, and at those that ``llmopt env create`` made.  What can be made stands in ``blueprints.py``, how it is made
in ``provision.py``.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from subprocess import DEVNULL

from llmopt.core import provision
from llmopt.core.blueprints import way_to_get
from llmopt.core.errors import MissingEnvironment, UsageError
from llmopt.core.installation import INSTALLER
from llmopt.core.interpreters import CONVERTER_FOLDER, Environment, ask, created, current, home, named_by_user

__all__ = [
    "CONVERTER_FOLDER",
    "Environment",
    "Needs",
    "create",
    "created",
    "current",
    "find",
    "freeze",
    "home",
    "missing",
    "named",
    "named_by_user",
    "requirement_lines",
    "tool",
    "tool_in",
    "tool_version",
]

TELLING = ("llama-server", "llama-cli", "llama-bench")


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What an adapter must find in an environment; ``extra`` is the extra of llmopt that brings it.

    ``programs`` may lie beside the environment's interpreter or on the PATH.
    """

    modules: tuple[str, ...]
    extra: str
    converter: bool = False
    programs: tuple[str, ...] = ()


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
    raise MissingEnvironment(f"no environment here has {', '.join(lacking)}", hint=way_to_get(needs.extra))


@functools.cache
def missing(environment: Environment, needs: Needs) -> tuple[str, ...]:
    """The needed modules and programs that are not there."""
    if environment.origin == "current":
        absent = [m for m in needs.modules if importlib.util.find_spec(m) is None]
    elif environment.origin == "created" and (absent := not_on_disk(environment, needs.modules)):
        pass  # its interpreter need not be started to see that
    else:
        code = "import importlib.util as u, sys; print(*[m for m in sys.argv[1:] if u.find_spec(m) is None])"
        absent = ask(environment, code, *needs.modules).split()
    if needs.converter and not (environment.converter / "convert_hf_to_gguf.py").exists():
        absent.append("llama.cpp's converter")
    absent += [p for p in needs.programs if not environment.python.with_name(p).exists() and not shutil.which(p)]
    return tuple(absent)


def not_on_disk(environment: Environment, modules: tuple[str, ...]) -> list[str]:
    """The modules that do not lie among an environment's packages."""
    folder = [str(environment.site_packages)]
    return [m for m in modules if PathFinder.find_spec(m.partition(".")[0], folder) is None]


@functools.cache
def freeze(environment: Environment) -> dict[str, str]:
    """Name → version of every distribution there."""
    if environment.origin == "current":
        versions = {d.name: d.version for d in importlib.metadata.distributions()}
    else:
        code = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
        versions = json.loads(ask(environment, code))
    return dict(sorted(versions.items(), key=lambda item: item[0].lower()))


def requirement_lines(environment: Environment) -> list[str]:
    """``name==version`` of all that an installer put there; our own stand-ins, which nobody can install, are left out."""
    code = (
        "import importlib.metadata as m, json, sys; "
        "print(json.dumps([d.name for d in m.distributions() if (d.read_text('INSTALLER') or '').strip() == sys.argv[1]]))"
    )
    ours = set(json.loads(ask(environment, code, INSTALLER)))
    return [f"{name}=={version}" for name, version in freeze(environment).items() if name not in ours]


def named(name: str) -> Environment:
    """An environment as people name it: one that we made, ``here``, or a path. Raises UsageError."""
    if name == "here":
        return current()
    if found := [environment for environment in created() if environment.prefix.name == name]:
        return found[0]
    if os.sep not in name and not Path(name).exists():
        known = ", ".join(environment.prefix.name for environment in created()) or "none yet"
        raise UsageError(f"no environment {name!r}", hint=f"made so far: {known}; or say here, or a path")
    return named_by_user(name)


def create(
    name: str, *, here: bool = False, build: bool = False, report: Callable[[str], None] = lambda _: None
) -> Environment:
    """``provision.create``, after which the new packages are found in this process too."""
    try:
        return provision.create(name, here=here, build=build, report=report)
    finally:
        missing.cache_clear()
        freeze.cache_clear()
        importlib.invalidate_caches()


def tool(name: str) -> Path | None:
    """llama.cpp's program of this name (``llama-quantize``): the user's own on the PATH, else one that we compiled."""
    if own := shutil.which(name):
        return Path(own)
    return next(filter(None, (tool_in(environment, name) for environment in [current(), *created()])), None)


def tool_in(environment: Environment, name: str) -> Path | None:
    """The program of this name in one environment."""
    places = (environment.site_packages / "bin" / name, environment.prefix / "bin" / name)
    return next((path for path in places if path.is_file() and os.access(path, os.X_OK)), None)


def tool_version(path: Path) -> str | None:
    """What a llama.cpp program says after ``version:``; ``None`` when neither it nor its neighbours say anything.

    llama-quantize knows no ``--version``: the programs of one build lie side by side, so another one is asked.
    """
    for program in dict.fromkeys((path, *(path.resolve().with_name(name) for name in TELLING))):
        with contextlib.suppress(OSError):
            if version := told_version(program, program.stat().st_mtime_ns):
                return version
    return None


@functools.cache
def told_version(program: Path, changed_ns: int) -> str | None:
    """The version that this file, last changed at ``changed_ns``, prints."""
    try:
        told = subprocess.run(
            [str(program), "--version"], capture_output=True, text=True, timeout=30, errors="replace", stdin=DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"^version: (.+)$", told.stdout + told.stderr, re.MULTILINE)
    return found[1].strip() if found else None
