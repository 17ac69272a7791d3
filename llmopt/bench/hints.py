"""What to say when nothing that was asked of a server succeeded: its own words, and the next step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from urllib.parse import urlsplit

from llmopt.bench.endpoint import Endpoint
from llmopt.bench.target import Target
from llmopt.core.domain import RequestTrace
from llmopt.core.errors import NothingAnswered, ServerError

MODELS_S, MODELS_BYTES = 3.0, 1 << 20
SHOWN = 8


def nothing_succeeded(
    traces: Sequence[RequestTrace], endpoint: Endpoint, target: Target, adapters: Sequence[str] = ()
) -> ServerError:
    """One line that says what the server said, and what to do about it; ``adapters`` were asked for instead of the model."""
    tried = [t for t in traces if t.sent_ns is not None] or list(traces)
    reason = next((t.error for t in tried if t.error and t.error_kind != "stopped"), "no answer")
    kind = reason.partition(":")[0]
    return NothingAnswered(
        f"all {len(tried)} requests to {endpoint.shown} failed: {reason}",
        hint=remedy(kind, target, endpoint, adapters),
        errors=dict(Counter(t.error_kind or "none" for t in tried)),
        begun=any(t.chunks_ns for t in tried),
    )


def known_models(target: Target, endpoint: Endpoint) -> tuple[str, ...]:
    """What the server's /models lists, asked with the same key and headers; empty where it lists nothing at once.

    Not through a proxy, after no redirect, and no longer than ``MODELS_S``: it is only a hint.
    """
    import threading

    found: list[str] = []

    def ask() -> None:
        import http.client
        import json

        kind = http.client.HTTPSConnection if endpoint.tls else http.client.HTTPConnection
        connection = kind(endpoint.host, endpoint.port, timeout=MODELS_S)
        try:
            path = urlsplit(target.base_url).path.rstrip("/") + "/models"
            connection.request("GET", path, headers=endpoint.identified())
            document = json.loads(connection.getresponse().read(MODELS_BYTES))
            found.extend(str(row["id"]) for row in document["data"])
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
            pass
        finally:
            connection.close()

    if endpoint.proxy is not None:
        return ()
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(MODELS_S)
    return tuple(found)


def remedy(kind: str, target: Target, endpoint: Endpoint, adapters: Sequence[str] = ()) -> str:
    """The next step for a kind of failure."""
    other = "chat" if endpoint.path.endswith("/completions") and "/chat/" not in endpoint.path else "completions"
    if kind in ("http_401", "http_403"):
        return "put the key into LLMOPT_API_KEY"
    if kind in ("http_404", "http_400", "http_422"):
        names = known_models(target, endpoint)
        lacking = [name for name in adapters or (target.model,) if name not in names]
        if names and lacking:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            return (
                f"the server has no {'adapter' if adapters else 'model'} {', '.join(map(repr, lacking))};"
                f" it lists: {', '.join(names[:SHOWN])}{more}"
            )
        return f"is the path right (a base URL ends in /v1)? --endpoint {other} asks the other way"
    if kind in ("bad_stream", "http_405", "http_501"):
        return "is this an OpenAI-compatible server, and does the base URL end in /v1?"
    if kind == "http_429":
        return "the server limits its rate: a lower load, or --retries 3"
    if kind in ("timeout", "stalled"):
        return "read the server's log; llmopt bench waits longer with --request-timeout or --stall-timeout"
    if kind == "refused":
        return "is the server running, and the address right?"
    return "read the server's log"
