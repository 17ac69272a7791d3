"""Devices by name, out of ``hardware.toml``."""

from __future__ import annotations

import functools
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmopt.core.errors import UsageError, nearest

TABLE = Path(__file__).with_name("hardware.toml")
GB, GIB = 10**9, 1 << 30
ALIKE = 0.1  # as a share of the memory that a name states: drivers show less than the box says
GIVEN_TO_GPUS = (1, 3 / 4, 2 / 3)  # of a memory that a processor shares
VENDORS = {"nvidia", "geforce", "tesla", "quadro", "amd", "instinct", "radeon", "intel", "apple", "gpu"}
# Words of drivers' names that tell no two devices of the table apart; "pcie", "ti" or "laptop" do.
SILENT = {
    "generation", "edition", "server", "workstation", "blackwell", "hbm2", "hbm2e", "hbm3", "hbm3e", "oam", "rtx",
    "sxm", "sxm2", "sxm3", "sxm4", "sxm5", "gb",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Device:
    """``kind``: gpu, shared (one memory for processor and GPU) or cpu; ``tflops``: dense, by number type.

    ``link_bytes_per_s``: to others of its kind, in one direction; ``checked``: when the figures were looked up, empty for
    those from memory.
    """

    key: str
    name: str
    kind: str
    memory_bytes: int
    bandwidth_bytes_per_s: float
    tflops: dict[str, float] = field(default_factory=dict)
    link_bytes_per_s: float | None = None
    aliases: tuple[str, ...] = ()
    source: str = ""
    date: str = ""
    checked: str = ""


@functools.cache
def devices() -> dict[str, Device]:
    """All that are known, in the order of the file."""
    rows: dict[str, dict[str, Any]] = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    return {
        key: Device(
            key=key, name=row["name"], kind=row["kind"], memory_bytes=int(row["memory_gib"] * GIB),
            bandwidth_bytes_per_s=row["bandwidth_gbs"] * 1e9, tflops=dict(row["tflops"]),
            aliases=tuple(row.get("aliases", ())), source=row["source"], date=row["date"],
            link_bytes_per_s=row["link_gbs"] * 1e9 if "link_gbs" in row else None, checked=row.get("checked") or "",
        )
        for key, row in rows.items()
    }  # fmt: skip


def device(name: str, memory_bytes: int | None = None) -> Device:
    """By its key, an alias, or its full name, with or without dashes, or as a driver names it.

    ``memory_bytes``: as the driver tells it, where a name is that of several.  Raises UsageError with the nearest names,
    and for a name that states a memory which no such device of the table has.
    """
    known = devices()
    wanted = plain(name).removeprefix("nvidia").removeprefix("geforce").removeprefix("amd")
    for found in known.values():
        if memory_bytes is None and wanted in map(plain, (found.key, *found.aliases, found.name)):
            return found
    if alike := by_words(name):
        said = re.search(r"(\d+) ?gi?b?\b", name.lower())
        told = memory_bytes or (int(said[1]) * GIB if said else None)
        if told is None:
            return alike[0]
        nearest_one = min(alike, key=lambda one: abs(one.memory_bytes - told))
        if memory_bytes is None and said and not holds(nearest_one, int(said[1])):
            raise UsageError(
                f"no {nearest_one.key} with {said[1]} GB is known", hint=f"--gpu {nearest_one.key} --vram {said[1]}GiB"
            )
        return nearest_one
    hint = nearest(name, [alias for one in known.values() for alias in (one.key, *one.aliases)])
    if hint.startswith("known:"):
        hint = "llmopt estimate --gpu list names them; or give its memory: --vram 24GiB"
    raise UsageError(f"unknown GPU {name!r}", hint=hint)


def holds(one: Device, stated: int) -> bool:
    """Whether a device may be sold as one of so many GB or GiB; of a processor's memory the table has a usual size alone."""
    shares = GIVEN_TO_GPUS if one.kind == "shared" else (1,)
    sizes = [stated * unit * share for unit in (GB, GIB) for share in shares]
    return one.kind == "cpu" or any(abs(one.memory_bytes - size) <= ALIKE * size for size in sizes)


def by_words(name: str) -> list[Device]:
    """All whose words are those of a driver's name; they differ in their memory alone."""
    asked, found, most = words(name), list[Device](), 0
    for one in devices().values():
        fits = [w for w in map(words, (one.key, *one.aliases)) if w and w <= asked and asked - w <= SILENT]
        longest = max(map(len, fits), default=0)
        if longest > most:
            found, most = [], longest
        if longest and longest == most:
            found.append(one)
    return found


def words(name: str) -> set[str]:
    """Without vendors' and the memory's."""
    found = set(re.findall(r"[a-z0-9]+", name.lower()))
    return {word for word in found if not re.fullmatch(r"\d+gi?b?", word)} - VENDORS


def plain(name: str) -> str:
    """Letters and digits alone, 80 GB and 80g as one."""
    return re.sub(r"(\d+)gi?b?$", r"\1g", "".join(letter for letter in name.lower() if letter.isalnum()))
