"""The two sides of a gate: a URL, a recipe, an artifact, or runs that are stored; told apart by what was written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from llmopt import demo, recipe
from llmopt.core.domain import Case, Measurement, ServeOptions, Workload, workload_identity
from llmopt.core.errors import UsageError
from llmopt.core.files import scratch_folder
from llmopt.core.run_index import load_runs, read_store
from llmopt.core.run_row import served_as
from llmopt.gate.baselines import NAME, Baseline, baseline_folder, read_baseline
from llmopt.gate.blocks import Reading
from llmopt.gate.counts import Counts
from llmopt.gate.quality import unquantized
from llmopt.pipeline import plans
from llmopt.pipeline.measuring import Subject, engine_version, serving_case, url_subject
from llmopt.pipeline.proving import quality_file, read_quality
from llmopt.pipeline.reporter import Reporter
from llmopt.serve.options import command_words

RECIPE_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """Something that can be measured: ``opened`` serves it, or takes it as it runs, for the time of a ``with`` block.

    The reporter that ``opened`` is given hears of the start.  ``identity``: what must be the same for a gate to go on;
    ``quality``, ``model`` and ``unquantized`` as in a ``Reading``.
    """

    label: str
    identity: Any
    workload: Workload
    restarts: bool
    opened: Callable[[Reporter], AbstractContextManager[Subject]]
    case_key: str = ""
    quality: dict[str, Any] | None = None
    model: str | None = None
    unquantized: bool = False


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Runs that were measured before. ``baseline`` names the accepted ones that they are, ``accepted_at`` since when.

    ``lost``: of what was measured now, sessions in which nothing succeeded, by the key of their case: there is no record.
    """

    label: str
    runs: tuple[Measurement, ...]
    counts: Mapping[str, Counts]
    folder: Path | None = None
    baseline: Baseline | None = None
    lost: Mapping[str, tuple[Reading, ...]] = field(default_factory=dict)

    @property
    def words(self) -> str:
        if not self.runs:
            return f"{self.label}: nothing succeeded"
        artifact, engine = self.runs[0].artifact, self.runs[0].backend
        what = f"{artifact.get('label') or artifact.get('quantization')} on {engine.get('name')}"
        age = f", {self.baseline.age_days:.0f} days old" if self.baseline else ""
        return f"{self.label}: {what} ({len(self.runs)} runs{age})"


@dataclass(frozen=True, kw_only=True)
class Ways:
    """What the command line says of how sides are measured, the same for both."""

    results: Path
    work: Path
    workload: Workload
    model: str | None = None
    tokenizer: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    report: Reporter
    options: ServeOptions = field(default_factory=lambda: ServeOptions(backend=""))
    python: str | None = None


def side_of(text: str, ways: Ways) -> list[Contestant] | Stored:
    """What ``text`` names. Raises UsageError where it names nothing."""
    path = Path(text)
    if text.startswith(("http://", "https://")):
        return [of_url(text, ways)]
    if path.suffix in RECIPE_SUFFIXES:
        return of_recipe(path, ways)
    if NAME.fullmatch(text) and baseline_folder(ways.results, text).is_dir():
        found = read_baseline(ways.results, text)
        return Stored(label=f"baseline {text}", runs=found.runs, counts=found.counts, baseline=found)
    if text in ("demo", recipe.BUILTIN) or is_artifact(path):
        return [of_artifact(demo.MODEL if text in ("demo", recipe.BUILTIN) else path, ways)]
    if path.exists():
        return Stored(label=text, runs=runs_in(path, ways.report), counts={}, folder=home_of(path))
    runs = [run for run in (load_runs(ways.results) if ways.results.is_dir() else []) if run.run_id == text]
    if runs:
        return Stored(label=text, runs=tuple(runs), counts={})
    raise UsageError(
        f"{text!r} is no URL, recipe, artifact, run, folder of runs, or baseline",
        hint="llmopt baseline list shows the baselines; llmopt gate --help has examples",
    )


def runs_in(path: Path, report: Reporter) -> tuple[Measurement, ...]:
    """Raises UsageError for files that lie there twice: readers count them once, and whoever copied them takes them for more."""
    if copies := read_store(path).copies:
        raise UsageError(
            f"{path}: {copies} of the files there are copies of others", hint="remove them: a copy is no second run"
        )
    return tuple(load_runs(path, say=report.say))


def home_of(path: Path) -> Path:
    """The results folder that a record, a machine's folder or a results folder is, or is in: timelines lie beside records."""
    folder = path.parent if path.is_file() else path
    return folder.parent if (folder / "machine.json").exists() else folder


def is_artifact(path: Path) -> bool:
    if path.is_file():
        return path.suffix == ".gguf"
    return any((path / name).exists() for name in ("llmopt.json", "config.json"))


def of_url(url: str, ways: Ways) -> Contestant:
    """A server as it runs: nobody starts it anew, so all its runs are one session."""
    if ways.model is None:
        raise UsageError("a URL needs the name of the model", hint="--model NAME, as the server's /v1/models lists it")
    subject = url_subject(url, ways.model, results=ways.results, tokenizer=ways.tokenizer, headers=ways.headers)
    return Contestant(
        label=subject.label,
        identity=[
            url,
            ways.model,
            workload_identity(asdict(ways.workload)),
            ways.tokenizer,
            sorted(ways.headers.items()),
            subject.backend.get("engine"),
            subject.backend.get("version"),
        ],
        case_key=subject.case_key(ways.workload),
        workload=ways.workload,
        restarts=False,
        opened=lambda report: contextlib.nullcontext(subject),
    )


def of_artifact(path: Path, ways: Ways) -> Contestant:
    """An artifact or a model folder, served with the options of the command line."""
    case = plans.open_case(path, ways.options, ways.workload)
    cache = served_as(asdict(case.serve))
    proven = case.artifact.quantization.method != "none" and cache is not None
    return of_case(case, ways, read_quality(quality_file(case.artifact, cache or "auto")) if proven else None)


def of_recipe(path: Path, ways: Ways) -> list[Contestant]:
    """Every case of a recipe, made and proven first; its workload is the recipe's own."""
    plan, report = recipe.load(path), ways.report
    found = []
    with scratch_folder(ways.work.resolve(), "shared-") as shared:
        for name, options in plan.cases:
            report.say(f"{path.stem}: {name} on {options.backend}")
            case, quality = plans.proven_case(plan, name, options, ways.work, report, shared)
            found.append(of_case(case, ways, quality))
    return found


def of_case(case: Case, ways: Ways, quality: dict[str, Any] | None) -> Contestant:
    @contextlib.contextmanager
    def opened(report: Reporter) -> Iterator[Subject]:
        with serving_case(case, report, results=ways.results, python=ways.python) as subject:
            yield replace(subject, quality=quality)

    words = " ".join(command_words(case.serve)[2:])  # the engine is in the label already
    return Contestant(
        label=f"{case.label} {words}".strip(), workload=case.workload, restarts=True, opened=opened, case_key=case.key,
        identity=[case.key, ways.python, engine_version(case.serve.backend, ways.python)],
        quality=quality, model=case.artifact.base_fingerprint,
        unquantized=unquantized(case.artifact.quantization.method, asdict(case.serve)),
    )  # fmt: skip


def paired(base: Sequence[Contestant], candidate: Sequence[Contestant]) -> list[tuple[Contestant, Contestant]]:
    """Which is compared with which: one with one, else by label. Raises UsageError where nothing is in common."""
    if len(base) == len(candidate) == 1:
        return [(base[0], candidate[0])]
    others = {one.label: one for one in candidate}
    found = [(one, others[one.label]) for one in base if one.label in others]
    if not found:
        raise UsageError(
            "the two sides have no case in common: "
            + "; ".join(
                f"{word} has {', '.join(c.label for c in side)}"
                for word, side in (("base", base), ("candidate", candidate))
            ),
            hint="one case on each side, or the same quantizations, engines and options on both",
        )
    return found
