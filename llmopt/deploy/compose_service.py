"""Words of a compose file that every service of ours shares."""

from __future__ import annotations

from typing import Any

from llmopt.deploy.templates import without_nul


def published(inside: int, port: int, *, everywhere: bool = False) -> dict[str, Any]:
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


def escaped(text: str) -> str:
    """As compose reads it: ``$`` begins the name of a variable, ``$$`` is one ``$``."""
    return without_nul(text).replace("$", "$$")
