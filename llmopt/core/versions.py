"""Versions of packages that are known not to work together: data (``versions.toml``), and what of it is installed."""

from __future__ import annotations

import functools
import importlib.metadata
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

TABLE = Path(__file__).with_name("versions.toml")


@dataclass(frozen=True, kw_only=True)
class BadPair:
    """``packages`` are requirements (PEP 508), all of which must be met; ``seen``: "tried" by us or "documented"."""

    packages: tuple[str, ...]
    problem: str
    remedy: str
    seen: str

    def found(self, versions: Mapping[str, str]) -> list[str]:
        """``name version`` of each of them where all are there; ``versions`` is by canonical name."""
        from packaging.requirements import Requirement
        from packaging.utils import canonicalize_name

        shown = []
        for word in self.packages:
            wanted = Requirement(word)
            version = versions.get(canonicalize_name(wanted.name))
            if version is None or not wanted.specifier.contains(version, prereleases=True):
                return []
            shown.append(f"{wanted.name} {version}")
        return shown


@functools.cache
def pairs() -> tuple[BadPair, ...]:
    rows = tomllib.loads(TABLE.read_text(encoding="utf-8"))["pair"]
    return tuple(BadPair(**row | {"packages": tuple(row["packages"])}) for row in rows)


def bad_pairs(versions: Mapping[str, str]) -> list[tuple[str, BadPair]]:
    """(what is installed, why that is bad) of each known pair among ``versions`` (name → version)."""
    from packaging.utils import canonicalize_name

    named = {str(canonicalize_name(name)): version for name, version in versions.items()}
    return [(" with ".join(found), pair) for pair in pairs() if (found := pair.found(named))]


def installed(folder: Path) -> dict[str, str]:
    """Name → version of what lies in a folder of packages, read from its metadata: no interpreter is started."""
    return {
        distribution.name: distribution.version
        for distribution in importlib.metadata.distributions(path=[str(folder)])
        if distribution.name
    }
