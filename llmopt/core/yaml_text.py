"""YAML as people write it today.

PyYAML reads YAML 1.1, where ``1:32`` is the number 92 (base 60): a range of a knob must stay the text that it is.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class Loader(yaml.SafeLoader):
    """Plain values alone, and no number of base 60."""


Loader.yaml_implicit_resolvers = {
    letter: [
        (tag, re.compile(rf"(?!.*:)(?:{pattern.pattern})", re.VERBOSE) if tag in NUMBERS else pattern)
        for tag, pattern in resolvers
    ]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(text: str) -> Any:
    """Raises yaml.YAMLError."""
    return yaml.load(text, Loader)
