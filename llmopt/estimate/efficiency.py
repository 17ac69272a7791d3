"""What an engine reaches of a device's peak: by the table, or by the table and the runs of this machine."""

from __future__ import annotations

import functools
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmopt.core.formats import Layout
from llmopt.estimate.memory import SAME_ENGINE
from llmopt.estimate.roofline import Factors

if TYPE_CHECKING:
    from llmopt.estimate.neighbours import Neighbour

TABLE = Path(__file__).with_name("efficiency.toml")
NAMES = tuple(f.name for f in fields(Factors) if f.name != "hides_launches")
OF_A_FORMAT = ("bandwidth", "decode", "batched", "growth", "prefill", "layer_s")

OF_KERNELS = ("batched", "growth")


@functools.cache
def table() -> dict[str, Any]:
    return tomllib.loads(TABLE.read_text(encoding="utf-8"))


@dataclass(frozen=True, kw_only=True)
class Group:
    """What shares its factors: an engine with a layout, on a kind of device."""

    backend: str
    layout: str
    format: str
    kind: str = "gpu"

    @property
    def engine(self) -> str:
        return SAME_ENGINE.get(self.backend, self.backend)


def group_of(backend: str, layout: Layout, kind: str) -> Group:
    return Group(backend=backend, layout=layout.name, format=layout.format, kind="cpu" if kind == "cpu" else "gpu")


def known(group: Group) -> bool:
    """Whether the table has a row of this engine on such a device."""
    return group.kind in table().get(group.engine, {})


def prior_factors(group: Group) -> Factors:
    """Before anything was measured."""
    row = table()[group.engine][group.kind]
    row = {"batched": row["decode"], "growth": 1.0} | row  # computing as it is for one, for each, where nobody looked
    changed = table()["format"][group.kind].get(group.format, {})
    changed = {"batched": changed.get("decode", 1.0)} | changed
    values = {name: row[name] * changed.get(name, 1.0) for name in NAMES}
    return Factors(**values, hides_launches=row.get("hides_launches", False))


@dataclass(frozen=True, kw_only=True)
class Coordinate:
    """One thing that runs can teach: by how much a factor of an engine, or of one layout in it, is off (``shifted``)."""

    engine: str
    factor: str
    layout: str = ""

    @property
    def spread(self) -> float:
        of_a_format = "kernels" if self.factor in OF_KERNELS else "format"
        return float(table()["spread"][of_a_format if self.layout else self.factor])


def coordinates(group: Group) -> list[Coordinate]:
    """Those that the factors of a group depend on."""
    own = [Coordinate(engine=group.engine, factor=name) for name in NAMES]
    return own + [Coordinate(engine=group.engine, factor=name, layout=group.layout) for name in OF_A_FORMAT]


def shifted(factor: str, value: float, by: float) -> float:
    """A factor that is off by so much: on its logarithm, or, of the share between 0 and 1, on that of its odds."""
    if factor == "interleave":
        return 1 / (1 + (1 - value) / value * math.exp(-by))
    return value * math.exp(by)


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """``found``: coordinate → how far it is off the table; ``covariance`` of these; ``error``: of the model itself.

    ``runs``: configurations that taught it; ``left_out``: the median error of each where it is predicted by the others;
    ``neighbours``: what the factors leave of each.
    """

    found: Mapping[Coordinate, float] = field(default_factory=dict)
    covariance: Mapping[tuple[Coordinate, Coordinate], float] = field(default_factory=dict)
    error: float = 0.0
    runs: int = 0
    engines: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, float] = field(default_factory=dict)
    neighbours: tuple[Neighbour, ...] = ()

    def model_error(self, group: Group) -> float:
        """Standard deviation of the logarithm: of the table's, or as runs of this engine showed."""
        return self.error if self.error and self.engines.get(group.engine) else float(table()["spread"]["model"])

    def factors(self, group: Group, moved: Mapping[Coordinate, float] | None = None) -> Factors:
        """``moved``: coordinates that are tried elsewhere."""
        there = {**self.found, **(moved or {})}
        values = asdict(prior_factors(group))
        for c in coordinates(group):
            values[c.factor] = shifted(c.factor, values[c.factor], there.get(c, 0.0))
        return Factors(**values)

    def between(self, one: Coordinate, other: Coordinate) -> float:
        """Covariance; the table's own where nothing was measured."""
        known = self.covariance.get((one, other))
        if known is not None:
            return known
        return one.spread**2 if one == other else 0.0


def variance(knowledge: Knowledge, slopes: Sequence[tuple[Coordinate, float]]) -> float:
    """Of the logarithm of something with these slopes."""
    return sum(a * b * knowledge.between(one, other) for one, a in slopes for other, b in slopes)
