"""What an installed library can take, read from its source files without importing it: an import costs seconds."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

from llmopt.core.environments import Environment

CAUSAL_LM = ("transformers/models/auto/modeling_auto.py", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")
AWQ_MAPPINGS = (
    ("llmcompressor/modifiers/transform/awq/mappings.py", "AWQ_MAPPING_REGISTRY"),
    ("llmcompressor/modifiers/transform/awq/dynamic_mappings.py", "AWQ_DYNAMIC_MAPPING_REGISTRY"),
)


@functools.cache
def packages_folder(environment: Environment) -> Path | None:
    """Where that environment's packages lie; ``None`` where the layout is not the usual one."""
    return next(iter(sorted(environment.prefix.glob("lib/python3*/site-packages"))), None)


def causal_lm_types(environment: Environment) -> frozenset[str] | None:
    """Model types that transformers there loads as causal language models; ``None`` when that cannot be read."""
    return keys_of(environment, *CAUSAL_LM)


def awq_architectures(environment: Environment) -> frozenset[str] | None:
    """Architectures for which llm-compressor there knows which layers AWQ may scale; ``None`` when it cannot be read."""
    found = [keys_of(environment, *place) or frozenset[str]() for place in AWQ_MAPPINGS]
    return frozenset().union(*found) or None


@functools.cache
def keys_of(environment: Environment, file: str, variable: str) -> frozenset[str] | None:
    """The string keys of a module's table, written as a dict or as pairs."""
    folder = packages_folder(environment)
    if folder is None or not (folder / file).is_file():
        return None
    for node in ast.parse((folder / file).read_text(encoding="utf-8")).body:
        target = (
            node.target
            if isinstance(node, ast.AnnAssign)
            else node.targets[0]
            if isinstance(node, ast.Assign)
            else None
        )
        if not isinstance(target, ast.Name) or target.id != variable:
            continue
        keys = {
            key.value
            for d in ast.walk(node)
            if isinstance(d, ast.Dict)
            for key in d.keys
            if isinstance(key, ast.Constant)
        }
        pairs = {
            t.elts[0].value for t in ast.walk(node)
            if isinstance(t, ast.Tuple) and t.elts and isinstance(t.elts[0], ast.Constant)
        }  # fmt: skip
        return frozenset(str(name) for name in keys | pairs) or None
    return None


@functools.cache
def gguf_architectures(environment: Environment) -> frozenset[str] | None:
    """Architectures that llama.cpp's converter there registers; ``None`` without a converter."""
    files = [*environment.converter.glob("conversion/*.py"), *environment.converter.glob("convert_hf_to_gguf.py")]
    calls = (
        match
        for file in files
        for match in re.findall(r"@ModelBase\.register\((.*?)\)\n", file.read_text(encoding="utf-8"), re.S)
    )
    found = frozenset(name for call in calls for name in re.findall(r'"(\w+)"', call))
    return found or None
