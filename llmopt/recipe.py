"""``recipes/*.yaml`` ⇄ a validated ``Plan``: which cases to make and measure, and what they are for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import yaml

from llmopt import demo
from llmopt.bench.workload import make_workload
from llmopt.core.domain import Goal, ServeOptions, Workload
from llmopt.core.errors import UsageError, nearest
from llmopt.core.yaml_text import read_yaml
from llmopt.quantize import method, quantization
from llmopt.recommend.constraints import make_goal
from llmopt.serve import backend, require_loadable
from llmopt.serve.adapters import named_adapters, require_adapters
from llmopt.serve.options import require_known

BUILTIN = "builtin"
OF_A_CASE = ("quantizations", "step")  # fields of a case that are no options of a server
T = TypeVar("T")
Positive = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[int, msgspec.Meta(ge=0)]


class Calibration(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    text: str = BUILTIN
    samples: Positive | None = None
    sample_tokens: Positive | None = None
    seed: NotNegative | None = None


class QualityText(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    text: str = BUILTIN
    tokens: Positive = 16_384


class QuantizationText(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True, rename={"engine": "for"}):
    """One quantization with the options of ``llmopt quantize`` under the same names; its name alone will do too."""

    name: str
    format: str | None = None
    engine: str | None = None
    imatrix: str | None = None

    @property
    def folder(self) -> str:
        """Where it goes, below the folder of the recipe."""
        return self.name + (f"-{self.format}" if self.format else "")


class QuantizeRecipe(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """What ``llmopt quantize --recipe`` makes: several quantizations of one model, alike calibrated and proven."""

    name: str
    model: str
    quantizations: list[QuantizationText | str]
    calibration: Calibration = Calibration()
    quality: QualityText = QualityText()


class WorkloadText(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """The options of ``llmopt bench`` under the same names; lengths may be distributions, ``warmup`` may be auto."""

    input_tokens: Positive | str = 64
    output_tokens: Positive | str = 32
    concurrency: Positive | None = None
    rate: float | None = None
    ramp: str | None = None
    arrival: str = "constant"
    burstiness: float = 1.0
    max_concurrency: Positive | None = None
    requests: Positive | None = None
    duration: float | None = None
    warmup: NotNegative | str = 8
    endpoint: str = "completions"
    dataset: str = ""
    turns: Positive = 1
    think: float = 0.0
    slos: list[str] = []
    seed: int = 0
    prefix_tokens: NotNegative = 0
    images: NotNegative = 0
    image_size: str = "256x256"
    adapters: list[str] = []

    def workload(self) -> Workload:
        """Raises UsageError."""
        return make_workload(
            input_tokens=str(self.input_tokens), output_tokens=str(self.output_tokens), concurrency=self.concurrency,
            rate=self.rate, ramp=self.ramp, requests=self.requests, duration=self.duration, warmup=str(self.warmup),
            arrival=self.arrival, burstiness=self.burstiness, max_concurrency=self.max_concurrency,
            endpoint=self.endpoint, dataset=self.dataset, turns=self.turns, think_s=self.think, slos=tuple(self.slos),
            seed=self.seed, prefix_tokens=self.prefix_tokens, images=self.images, image_size=self.image_size,
            adapters=tuple(self.adapters),
        )  # fmt: skip


class GoalText(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    optimize: str = "throughput"
    slos: list[str] = []
    max_memory: str | None = None
    max_kl: float | None = None


class Recipe(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """The file as written; ``plan`` turns it into what can be run."""

    name: str
    model: str
    cases: list[dict[str, Any]]
    calibration: Calibration = Calibration()
    quality: QualityText = QualityText()
    workload: WorkloadText = WorkloadText()
    repeats: Positive = 1
    goal: GoalText = GoalText()
    compare: Literal["ranking", "steps"] = "ranking"
    price_per_hour: float | None = None


class SearchText(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """What ``llmopt tune MODEL`` takes as options, in a file; left out is what the command does unasked."""

    slos: list[str] = []
    max_kl: float | None = None
    max_memory: str | None = None
    optimize: str | None = None
    price_per_hour: float | None = None
    budget: str | float | None = None
    backends: list[str] = []
    quantizations: list[str] = []
    knobs: dict[str, str | int | float | bool | list[str | int | float | bool]] = {}
    extra_args: list[str] = []
    concurrency: list[int] = []
    rates: list[float] = []
    input_tokens: str | int | None = None
    output_tokens: str | int | None = None
    prefix_tokens: int | None = None
    requests: int | None = None
    exhaustive: bool = False
    seed: int | None = None


class SearchRecipe(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A recipe without cases: the space that is searched for them."""

    name: str
    model: str
    search: SearchText


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A recipe whose every name and combination was checked; ``cases`` are (quantization, serve options).

    ``steps`` name the cases where each is one change to the one before it, and are empty where they are ranked.
    """

    name: str
    model: Path
    calibration: str
    calibration_samples: int | None
    quality_text: Path
    quality_tokens: int
    cases: tuple[tuple[str, ServeOptions], ...]
    workload: Workload
    repeats: int
    goal: Goal
    steps: tuple[str, ...] = ()
    price_per_hour: float | None = None


@dataclass(frozen=True, kw_only=True)
class QuantizePlan:
    """A recipe of quantizations whose every name was checked."""

    name: str
    model: Path
    quantizations: tuple[QuantizationText, ...]
    calibration: str
    samples: int | None
    sample_tokens: int | None
    seed: int | None
    quality_text: Path
    quality_tokens: int


def load(path: Path) -> Plan:
    """Read and check a recipe of cases; raises UsageError that names the place in the file."""
    return read(path, lambda document: plan(msgspec.convert(document, Recipe), path.parent))


def load_quantizations(path: Path) -> QuantizePlan:
    """Read and check a recipe of quantizations; raises UsageError that names the place in the file."""
    return read(path, lambda document: quantize_plan(msgspec.convert(document, QuantizeRecipe), path.parent))


def is_search(path: Path) -> bool:
    """Whether a recipe names a space to search instead of cases. Raises UsageError for a file that is none."""
    return read(path, lambda document: isinstance(document, dict) and "search" in document)


def load_search(path: Path) -> tuple[Path, SearchText]:
    """The model and what is searched; raises UsageError that names the place in the file."""

    def checked(document: Any) -> tuple[Path, SearchText]:
        recipe = msgspec.convert(document, SearchRecipe)
        if isinstance(recipe.search.budget, (int, float)):
            raise UsageError(f"budget: {recipe.search.budget:g} has no unit", hint="budget: 10min")
        return resolve(recipe.model, path.parent, demo.MODEL), recipe.search

    return read(path, checked, example="recipes/search.yaml")


def read(path: Path, checked: Callable[[Any], T], example: str = "recipes/demo.yaml") -> T:
    try:
        return checked(read_yaml(path.read_text()))
    except UsageError as error:
        raise UsageError(f"{path}: {error.message}", hint=error.hint) from error
    except OSError as error:
        raise UsageError(f"no recipe at {path}: {error.strerror}", hint=f"name a YAML file, see {example}") from error
    except (yaml.YAMLError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}", hint=f"{example} shows every field") from error


def plan(recipe: Recipe, folder: Path) -> Plan:
    """Check every name and combination before anything starts; paths in a recipe are relative to its file."""
    workload = recipe.workload.workload()
    check_mode(recipe)
    cases, steps = [], []
    for place, group in enumerate(recipe.cases):
        names, options = case_group(group, f"$.cases[{place}]", workload, folder)
        if recipe.compare == "steps":
            steps.append(step_name(group, names, f"$.cases[{place}]"))
        for name in names:
            require_loadable(options.backend, quantization(name))
            cases.append((name, options))
    if not cases:
        raise UsageError(
            f"the recipe {recipe.name!r} has no case", hint="add a backend with quantizations under cases:"
        )
    goal = recipe.goal
    return Plan(
        name=recipe.name,
        model=resolve(recipe.model, folder, demo.MODEL),
        calibration=found_text(recipe.calibration.text, folder),
        calibration_samples=recipe.calibration.samples,
        quality_text=resolve(recipe.quality.text, folder, demo.HELD_OUT_TEXT),
        quality_tokens=recipe.quality.tokens,
        cases=tuple(cases),
        workload=workload,
        repeats=recipe.repeats,
        goal=make_goal(
            goal.slos,
            max_memory=goal.max_memory,
            max_kl=goal.max_kl,
            optimize=goal.optimize,
            price_per_hour=recipe.price_per_hour,
        ),
        steps=tuple(steps),
        price_per_hour=recipe.price_per_hour,
    )


def check_mode(recipe: Recipe) -> None:
    """What the way of comparing would not hear of is refused. Raises UsageError."""
    price = recipe.price_per_hour
    if price is not None and not (math.isfinite(price) and price > 0):
        raise UsageError(f"price_per_hour must be more than 0, got {price}", hint="price_per_hour: 1.2")
    if recipe.compare == "steps" and recipe.goal != GoalText():
        raise UsageError("steps are not ranked: a goal would not be heard", hint="leave goal out, or compare: ranking")
    if recipe.compare == "ranking" and any("step" in group for group in recipe.cases):
        raise UsageError("a step is of a recipe that compares steps", hint="compare: steps")


def case_group(group: dict[str, Any], place: str, workload: Workload, folder: Path) -> tuple[list[str], ServeOptions]:
    """``backend``, ``quantizations``, and the options of ``llmopt serve`` under the names of ServeOptions."""
    known = [*(f.name for f in fields(ServeOptions)), *OF_A_CASE]
    for name in group:
        if name not in known:
            raise UsageError(f"unknown field {name!r} - at `{place}`", hint=nearest(name, known))
    wanted = {"max_num_seqs": workload.most_at_once} | {n: v for n, v in group.items() if n not in OF_A_CASE}
    try:
        quantizations = msgspec.convert(group.get("quantizations"), list[str])
        options = msgspec.convert(wanted, ServeOptions)
    except msgspec.ValidationError as error:
        raise UsageError(f"{error} (in `{place}`)", hint="recipes/demo.yaml shows every field") from error
    if not quantizations:
        raise UsageError(f"no quantization - at `{place}`", hint="quantizations: [bf16]")
    chosen, options = backend(options.backend), with_places(options, folder, place)
    require_known(chosen, options)
    named_adapters(options.lora_modules)
    require_adapters(chosen, options, workload.adapters)
    return quantizations, options


def with_places(options: ServeOptions, folder: Path, place: str) -> ServeOptions:
    """Draft and adapters where they lie beside the recipe; a word such as ``ngram`` stays one. Raises UsageError."""
    adapters = [module.partition("=") for module in options.lora_modules]
    options = replace(options, lora_modules=tuple(
        f"{name}={folder / Path(path).expanduser()}" if path else name + equals for name, equals, path in adapters
    ))  # fmt: skip
    draft = options.speculative_model
    if draft is None:
        return options
    near = folder / Path(draft).expanduser()
    if near.exists():
        return replace(options, speculative_model=str(near))
    if "/" in draft or draft.endswith(".gguf"):
        raise UsageError(
            f"speculative_model: no draft at {near} - at `{place}`", hint="a folder, a GGUF file, or ngram"
        )
    return options


def step_name(group: dict[str, Any], names: list[str], place: str) -> str:
    """A step is one case with a name; raises UsageError."""
    name = group.get("step")
    if not isinstance(name, str) or not name or len(names) != 1:
        raise UsageError(
            f"a step needs a name and one quantization - at `{place}`",
            hint="step: prefix caching, quantizations: [bf16]",
        )
    return name


def quantize_plan(recipe: QuantizeRecipe, folder: Path) -> QuantizePlan:
    wanted = tuple(QuantizationText(name=q) if isinstance(q, str) else q for q in recipe.quantizations)
    if not wanted:
        raise UsageError(f"the recipe {recipe.name!r} has no quantization", hint="add names under quantizations:")
    for q in wanted:
        method(q.name).route(q.format)
    folders = [q.folder for q in wanted]
    if twice := next((name for name in folders if folders.count(name) > 1), None):
        raise UsageError(f"the recipe {recipe.name!r} makes {twice} twice", hint="one of each name and format")
    return QuantizePlan(
        name=recipe.name,
        model=resolve(recipe.model, folder, demo.MODEL),
        quantizations=wanted,
        calibration=found_text(recipe.calibration.text, folder),
        samples=recipe.calibration.samples,
        sample_tokens=recipe.calibration.sample_tokens,
        seed=recipe.calibration.seed,
        quality_text=resolve(recipe.quality.text, folder, demo.HELD_OUT_TEXT),
        quality_tokens=recipe.quality.tokens,
    )


def found_text(name: str, folder: Path) -> str:
    """A file beside the recipe where there is one; else the name as it stands, ``builtin`` or a data set's."""
    near = folder / Path(name).expanduser()
    return str(near) if name != BUILTIN and near.exists() else name


def resolve(name: str, folder: Path, builtin: Path) -> Path:
    return builtin if name == BUILTIN else folder / Path(name).expanduser()
