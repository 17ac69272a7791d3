"""Words of a compose file that every service of ours shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmopt.core.domain import stable_hash
from llmopt.deploy.plan import File
from llmopt.deploy.templates import without_nul

FILES_LABEL = "llmopt.files"


def published(inside: int, port: int | str, *, everywhere: bool = False) -> dict[str, Any]:
    """``port``: of this machine, a number or a variable of ``.env``; on the loopback address, or ``everywhere``."""
    return {
        "target": inside,
        "published": str(port),
        "protocol": "tcp",
        **({} if everywhere else {"host_ip": "127.0.0.1"}),
    }


def hardened() -> dict[str, Any]:
    """What every container here gets."""
    return {
        "init": True,
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "restart": "unless-stopped",
        # Docker keeps logs without end unless it is told otherwise.
        "logging": {"driver": "json-file", "options": {"max-size": "50m", "max-file": "3"}},
    }


def bind(here: str, there: str, *, variable: bool = False) -> dict[str, Any]:
    """Read-only; a path that is not there is an error, and not a folder that Docker makes as root.

    ``variable``: ``here`` is one of ``.env``, to be put in by compose.
    """
    source = here if variable else escaped(here)
    return {
        "type": "bind",
        "source": source,
        "target": escaped(there),
        "read_only": True,
        "bind": {"create_host_path": False},
    }


def label_files(services: Mapping[str, dict[str, Any]], made: Mapping[str, File]) -> None:
    """A hash of what each service mounts from here: compose makes a container anew when its words change, not for a file."""
    for service in services.values():
        mounted = [m["source"].replace("$$", "$") for m in service.get("volumes", ()) if m["type"] == "bind"]
        read = {p: made[p].text for p in made if any(f"./{p}" == m or f"./{p}".startswith(f"{m}/") for m in mounted)}
        if read:
            service["labels"] = {FILES_LABEL: stable_hash(read, 64)}


def escaped(text: str) -> str:
    """As compose reads it: ``$`` begins the name of a variable, ``$$`` is one ``$``."""
    return without_nul(text).replace("$", "$$")
