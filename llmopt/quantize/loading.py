"""Will that engine load this quantization here?  Chooses the layout that it is known to load."""

from __future__ import annotations

from collections.abc import Sequence

from llmopt.core.errors import UsageError, nearest
from llmopt.core.loading import Entry as Entry
from llmopt.core.loading import engines, seen
from llmopt.quantize import Method, Route


def choose_route(method: Method, layout: str | None, engine: str | None, device: str) -> tuple[Route, Entry | None]:
    """The route that writes the wanted layout, else the first that the engine is known to load, else the first.

    ``device``: "cpu" or "cuda".  Raises UsageError when the engine is known not to load what would be made.
    """
    if engine is None:
        return method.route(layout), None
    if engine not in engines():
        raise UsageError(f"unknown backend {engine!r}", hint=nearest(engine, engines()))
    routes = [method.route(layout)] if layout else list(method.routes)
    known = [(route, seen(engine, device, method.as_written(route))) for route in routes]
    for route, entry in known:
        if entry is not None and entry.loads:
            return route, entry
    refused = [entry for _, entry in known if entry is not None]
    if len(refused) < len(known):  # nothing speaks against one of them
        return next((route, None) for route, entry in known if entry is None)
    entry = refused[0]
    raise UsageError(
        f"{engine} does not load {method.name} on this machine ({entry.evidence}): {entry.note}",
        hint=f"another --quant, another --for: {' or '.join(able(method, device)) or 'no engine is known'}",
    )


def able(method: Method, device: str) -> Sequence[str]:
    """The engines that are known to load one of the method's layouts on such a device."""
    layouts = [method.as_written(route) for route in method.routes]
    return [e for e in engines() if any((entry := seen(e, device, q)) is not None and entry.loads for q in layouts)]
