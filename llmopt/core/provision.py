"""Make, complete, update and remove environments.

The journal in an environment's folder says which steps were done with which inputs, so that an interrupted or
outdated one gets exactly the steps it lacks.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmopt.core import llamacpp_source
from llmopt.core.blueprints import BLUEPRINTS, GB, Blueprint, blueprint, lock_file, platform_tag
from llmopt.core.domain import stable_hash
from llmopt.core.errors import Interrupted, LlmoptError, StoreError, UsageError
from llmopt.core.files import disk_errors
from llmopt.core.installation import Site, Step, drop_torn_packages, steps
from llmopt.core.interpreters import MARKER, PROGRESS, Environment, at, current, home
from llmopt.core.journal import (
    Journal,
    existing,
    folder_of,
    journal_of,
    locked,
    remove_folder,
    runs,
    size_bytes,
)
from llmopt.core.machine import gpu_names

DOWNLOADS = 1.2  # what pip unpacks and caches beside an environment, as a factor on its size


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What ``create`` would do now. ``lock`` is ``None`` when there is none for this system and Python."""

    blueprint: Blueprint
    environment: Environment
    here: bool
    build: bool
    lock: Path | None
    steps: tuple[Step, ...]
    todo: tuple[Step, ...]
    journal: Journal
    present_bytes: int
    free_bytes: int

    @property
    def wanted_bytes(self) -> int:
        """Free space without which it is not begun."""
        if not self.todo:
            return 0
        size = self.blueprint.disk_bytes + (self.blueprint.build_bytes if self.build else 0)
        return int(max(size - self.present_bytes, 0.05 * size) * DOWNLOADS)

    @property
    def cost(self) -> str:
        """One line for people."""
        text = f"{self.blueprint.cost(build=self.build)}, in {self.environment.prefix} ({self.free_bytes / GB:.0f} GB free)"
        return f"environment {self.blueprint.name}: {text}"


def plan(name: str, *, here: bool = False, build: bool = False) -> Plan:
    """What is to be done for this environment, and what for; a former ``--build`` holds. Raises UsageError."""
    chosen = blueprint(name, gpu=bool(gpu_names()))
    if build and not chosen.buildable:
        raise UsageError(f"nothing is built for {name}", hint="llmopt env create llamacpp --build")
    if here and chosen.alone:
        raise UsageError(f"{name} needs an environment of its own", hint="leave --here out")
    environment = current() if here else at(folder_of(name))
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    kept = None if here else journal_of(environment.prefix)
    if kept is not None and not runs(environment, kept.python):
        kept = Journal(name=name, python=python, build=kept.build)
    journal = kept or Journal(name=name, python=python)
    build = build or journal.build
    lock = lock_file(chosen, journal.python)
    needed = steps(chosen, lock=lock, build=build, here=here, cuda=bool(gpu_names() and shutil.which("nvcc")))
    todo = [step for step in needed if journal.steps.get(step.name) != step.digest]
    if here and (environment.converter / "convert_hf_to_gguf.py").exists():
        todo = [step for step in todo if step.name != "converter"]
    if (
        todo
        and all(step.optional and step.name in journal.left_out for step in todo)
        and not llamacpp_source.c_compiler()
    ):
        todo = []
    anchor = existing(environment.prefix)
    return Plan(
        blueprint=chosen,
        environment=environment,
        here=here,
        build=build,
        lock=lock,
        steps=tuple(needed),
        todo=tuple(todo),
        journal=replace(journal, build=build, lock=lock.name if lock else None),
        present_bytes=size_bytes(environment.prefix) if todo else 0,
        free_bytes=shutil.disk_usage(anchor).free,
    )


def require_possible(draft: Plan) -> None:
    """Refuse in the first second what cannot end well. Raises StoreError, MissingEnvironment or UsageError."""
    folder = draft.environment.prefix
    if draft.free_bytes < draft.wanted_bytes:
        raise StoreError(
            f"environment {draft.blueprint.name} needs {draft.wanted_bytes / GB:.1f} GB,"
            f" only {draft.free_bytes / GB:.1f} GB are free on the disk of {folder}",
            hint="free space, or let LLMOPT_HOME name a folder on another disk",
        )
    if any(step.name == "build" for step in draft.todo):
        llamacpp_source.require_build_tools()
    if not draft.here and journal_of(folder) is None and folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is there and was not made by llmopt", hint="move it away, or remove it")


def create(
    name: str, *, here: bool = False, build: bool = False, report: Callable[[str], None] = lambda _: None
) -> Environment:
    """Make the named environment, go on with it, or bring it up to date; ``here``: complete the one we run in.

    Raises LlmoptError with the log's path, and Interrupted with what is kept.
    """
    draft = plan(name, here=here, build=build)
    if not draft.todo:
        return draft.environment
    report(draft.cost)
    require_possible(draft)
    whose = f"here-{stable_hash(str(draft.environment.prefix))}" if here else name
    with locked(whose, wait=lambda: report(f"another llmopt is making {name}: waiting for it")):
        draft = plan(name, here=here, build=build)  # someone else may have finished it while we waited
        if draft.todo:
            carry_out(draft, report)
    return draft.environment


def carry_out(draft: Plan, report: Callable[[str], None]) -> None:
    folder, journal = draft.environment.prefix, draft.journal
    log = home() / "logs" / f"env-{draft.blueprint.name}.log"
    with disk_errors(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("")

    def save() -> None:
        if not draft.here:  # an environment that is not ours gets no file of ours
            journal.write(folder, PROGRESS)

    prepare(draft, save, report)
    with contextlib.ExitStack() as stack:
        site = Site(environment=draft.environment, log=log, lock=draft.lock, report=report, stack=stack)
        for step in draft.todo:
            if step.name != "venv" and any(s.source for s in draft.todo):
                _ = site.download
            report(step.title)
            take(step, site, journal)
            save()
    if not draft.here:
        journal.write(folder, MARKER)
        (folder / PROGRESS).unlink()


def prepare(draft: Plan, save: Callable[[], None], report: Callable[[str], None]) -> None:
    """Begin, or take up what an interrupted run left; a folder whose interpreter does not run begins anew."""
    folder, journal = draft.environment.prefix, draft.journal
    if draft.lock is None:
        report(f"no lock file for {platform_tag(journal.python)}: the newest versions that the pins allow")
    if draft.here:
        return
    if "venv" not in journal.steps:
        if journal_of(folder) is not None:
            remove_folder(folder)
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
    elif (folder / PROGRESS).exists():
        torn = drop_torn_packages(draft.environment)
        report(f"going on after {', '.join(journal.steps)}" + (f"; again: {', '.join(torn)}" if torn else ""))
    save()
    (folder / MARKER).unlink(missing_ok=True)


def take(step: Step, site: Site, journal: Journal) -> None:
    """Do one step and note it. An optional one that fails is left out, with a word."""
    journal.steps.pop(step.name, None)
    journal.left_out.pop(step.name, None)
    try:
        step.run(site)
    except KeyboardInterrupt:
        kept = ", ".join(journal.steps) or "nothing"
        raise Interrupted(f"stopped while {step.title}; kept: {kept}", hint="the same command goes on there") from None
    except LlmoptError as error:
        if not step.optional:
            raise
        journal.left_out[step.name] = error.message
        site.report(f"without {step.optional}: {error.message}")
    else:
        journal.steps[step.name] = step.digest


def remove(name: str) -> int:
    """Remove an environment that we made, or half made, and return its bytes. Raises UsageError for anything else."""
    folder = folder_of(name)
    if Path(name).name != name or name.startswith("."):
        raise UsageError(f"{name!r} is no environment's name", hint="llmopt env list shows them")
    if not folder.exists() and not folder.is_symlink():
        raise UsageError(f"there is no environment {name} in {folder.parent}", hint="llmopt env list shows them")
    if folder.is_symlink() or journal_of(folder) is None:
        raise UsageError(f"{folder} was not made by llmopt", hint="it is left alone: remove it by hand")
    with locked(name, wait=None):
        size = size_bytes(folder)
        remove_folder(folder)
    return size


def overview(*, sizes: bool = True) -> list[dict[str, Any]]:
    """Every environment that can be made or that is there, one row each; ``sizes`` in bytes take a second to sum."""
    names = dict.fromkeys(BLUEPRINTS)
    names |= dict.fromkeys(sorted(p.parent.name for f in (MARKER, PROGRESS) for p in home().glob(f"envs/[!.]*/{f}")))
    return [row(name, sizes=sizes) for name in names]


def row(name: str, *, sizes: bool) -> dict[str, Any]:
    folder = folder_of(name)
    journal = journal_of(folder)
    known = blueprint(name, gpu=bool(gpu_names())) if name in BLUEPRINTS else None
    return {
        "name": name,
        "state": state(name),
        "python": str(at(folder).python) if journal else None,
        "python_version": journal.python if journal else None,
        "size_bytes": size_bytes(folder) if journal and sizes else None,
        "cost_bytes": known.disk_bytes if known else None,
        "lock": journal.lock if journal else None,
        "built": journal.build if journal else False,
        "left_out": journal.left_out if journal else {},
        "purpose": known.purpose if known else "not one that this llmopt makes",
    }


def state(name: str) -> str:
    """``ready``, ``outdated`` (pins or lock changed), ``unfinished``, ``broken`` (does not run), or ``absent``."""
    folder = folder_of(name)
    journal = journal_of(folder)
    if journal is None:
        return "broken" if folder.is_dir() and any(folder.iterdir()) else "absent"
    if (folder / PROGRESS).exists():
        return "unfinished"
    if not runs(at(folder), journal.python):
        return "broken"
    return "outdated" if name in BLUEPRINTS and any(not s.optional for s in plan(name).todo) else "ready"


def describe(draft: Plan) -> dict[str, Any]:
    """What ``create --dry-run`` says, sizes in bytes."""
    minutes = draft.blueprint.minutes + (draft.blueprint.build_minutes if draft.build else 0)
    return {
        "name": draft.blueprint.name,
        "folder": str(draft.environment.prefix),
        "state": "ready" if not draft.todo else "to do",
        "wanted_bytes": draft.wanted_bytes,
        "free_bytes": draft.free_bytes,
        "minutes": minutes if draft.todo else 0,
        "lock": draft.lock.name if draft.lock else None,
        "steps": [{"name": s.name, "title": s.title, "done": s not in draft.todo} for s in draft.steps],
    }
