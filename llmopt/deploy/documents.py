"""YAML and JSON from plain dicts, by libraries: nothing that a user named is ever pasted into a document."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

# Text that this library reads as text and Go's (kubectl, Helm, Prometheus) as a number: 1e3, 0o17, 12_000.
NUMBER_ELSEWHERE = re.compile(r"[-+]?(0[xob][\da-f_]+|\.?\d[\d_.]*(e[-+]?\d+)?)", re.IGNORECASE)
# Breaks of a line for this library, and for Go's only sometimes: escaped, they are read alike.
BREAKS_ELSEWHERE = re.compile("[\x85\u2028\u2029]")


class Dumper(yaml.SafeDumper):
    """As people write YAML: no anchors, and several lines of text as a block."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def text_node(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = "|" if "\n" in text else "'" if NUMBER_ELSEWHERE.fullmatch(text) else None
    style = '"' if BREAKS_ELSEWHERE.search(text) else style
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


Dumper.add_representer(str, text_node)


def yaml_text(*documents: Mapping[str, Any], head: Sequence[str] = ()) -> str:
    """One or several documents; ``head``: comments above, a line each."""
    written = yaml.dump_all(
        [plain(d) for d in documents], Dumper=Dumper, sort_keys=False, allow_unicode=True, width=4096
    )
    return "".join(f"# {' '.join(line.split())}\n" for line in head) + written


def json_text(document: Any) -> str:
    return json.dumps(plain(document), indent=2, ensure_ascii=False) + "\n"


def plain(value: Any) -> Any:
    """Without tuples and frozen mappings, which YAML would give tags of Python."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
