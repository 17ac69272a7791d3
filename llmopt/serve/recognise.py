"""Which engine is behind a base URL, by what it says of itself: the owner of its models, its headers, its version page.

At most six GET requests, each short; nothing is posted and no redirect is followed, so that a key that was given for one
host reaches no other.  What cannot be told stays unknown.
"""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from llmopt import serve
from llmopt.serve.process import HOST, fetch

TIMEOUT_S = 2.0
LOOPBACK = (HOST, "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class Recognised:
    """``engine`` is a name of ``serve.BACKENDS`` or a known stranger's; ``evidence`` says what told so.

    ``metrics_url`` and ``metrics`` (our names → its own) are given only where that page was seen.
    """

    engine: str | None = None
    version: str | None = None
    evidence: tuple[str, ...] = ()
    metrics_url: str | None = None
    metrics: Mapping[str, str] = field(default_factory=dict)
    adapter_form: str = "{adapter}"


@dataclass(frozen=True, kw_only=True)
class Sign:
    """What gives an engine away: its models' owner, its ``Server`` header, a page whose JSON has that key.

    ``version`` is the key of its version in that page; ``prefix`` begins the names of its metrics.
    """

    engine: str
    owner: str | None = None
    server: str | None = None
    page: str | None = None
    key: str | None = None
    version: str | None = None
    prefix: str | None = None


# Owners and headers as the engines' sources have them: vLLM 0.32, SGLang 0.5.23, TensorRT-LLM 1.2, LMDeploy 0.18, llama.cpp
# b11k, Ray 2.60, Triton 26.07.  TGI names the model as its owner: its page of information tells.
SIGNS = (
    Sign(engine="vllm", owner="vllm", page="/version", key="version", version="version", prefix="vllm:"),
    Sign(engine="sglang", owner="sglang", page="/server_info", key="version", version="version", prefix="sglang:"),
    Sign(engine="trtllm", owner="tensorrt_llm", page="/version", key="version", version="version", prefix="trtllm_"),
    Sign(engine="lmdeploy", owner="lmdeploy", prefix="lmdeploy:"),
    Sign(engine="llamacpp", owner="llamacpp", server="llama.cpp", page="/props", key="build_info", version="build_info", prefix="llamacpp:"),
    Sign(engine="triton", owner="Triton Inference Server", prefix="vllm:"),
    Sign(engine="hf", owner="llmopt", prefix="llmopt_hf:"),
    Sign(engine="scripted", owner="llmopt", page="/scripted/stats", key="write_lag_p50_ns", prefix="scripted:"),
    Sign(engine="ollama", owner="library", page="/api/version", key="version", version="version"),
    Sign(engine="tgi", page="/info", key="router", version="version", prefix="tgi_"),
    Sign(engine="rayserve", page="/-/routes", key="/"),
)  # fmt: skip
ASKED_OF_STRANGERS = ("tgi", "rayserve")


def recognise(base_url: str, headers: Mapping[str, str] | None = None) -> Recognised:
    """What is known of the server at ``base_url`` (``http://host:port/v1``); never raises for what it answers."""
    pages = Pages(base_url, headers or {})
    sign, evidence = told_by_models(pages)
    if sign is None:
        sign, evidence = told_by_metrics(pages)
    if sign is None:
        sign, evidence = told_by_pages(pages)
    if sign is None:
        return Recognised()
    version = None
    if sign.page and sign.version and isinstance(page := pages.document(sign.page), dict) and page.get(sign.version):
        version = str(page[sign.version])
        evidence = (*evidence, f"{sign.page} says {version}")
    described = serve.backend(sign.engine) if sign.engine in serve.BACKENDS else None
    form = (described.adapter_form if described else None) or "{adapter}"
    if (
        described is None
        or not described.metrics
        or not sign.prefix
        or sign.prefix not in pages.text(described.metrics_path)
    ):
        return Recognised(engine=sign.engine, version=version, evidence=evidence, adapter_form=form)
    return Recognised(
        engine=sign.engine,
        version=version,
        evidence=evidence,
        metrics_url=pages.url(described.metrics_path),
        metrics=described.metrics,
        adapter_form=form,
    )


def told_by_models(pages: Pages) -> tuple[Sign | None, tuple[str, ...]]:
    """By the owner of its models, where several share one by what else they show; by its header else."""
    document, server = pages.document("/v1/models"), pages.headers("/v1/models").get("server", "")
    models = document.get("data") if isinstance(document, dict) else None
    listed = models if isinstance(models, list) else []
    owners = {str(model.get("owned_by")) for model in listed if isinstance(model, dict)}
    candidates = [sign for sign in SIGNS if sign.owner in owners]
    if len(candidates) > 1:
        candidates = [s for s in candidates if shows(pages, s)] or candidates[:1]
    if candidates:
        return candidates[0], (f"/v1/models is owned by {candidates[0].owner}",)
    for sign in SIGNS:
        if sign.server and sign.server.lower() in server.lower():
            return sign, (f"the Server header is {server}",)
    return None, ()


def told_by_metrics(pages: Pages) -> tuple[Sign | None, tuple[str, ...]]:
    text = pages.text("/metrics")
    for sign in SIGNS:
        if sign.prefix and re.search(rf"^{re.escape(sign.prefix)}", text, re.MULTILINE):
            return sign, (f"/metrics has names that begin with {sign.prefix}",)
    return None, ()


def told_by_pages(pages: Pages) -> tuple[Sign | None, tuple[str, ...]]:
    for sign in SIGNS:
        if sign.engine in ASKED_OF_STRANGERS and shows(pages, sign):
            return sign, (f"it has {sign.page}",)
    return None, ()


def shows(pages: Pages, sign: Sign) -> bool:
    document = pages.document(sign.page) if sign.page else None
    return isinstance(document, dict) and sign.key in document


# --- asking ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Page:
    """An answer with status 200, or an empty one."""

    text: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any, **more: Any) -> None:
        return None


class Pages:
    """The pages of one server, each asked for once."""

    def __init__(self, base_url: str, headers: Mapping[str, str]) -> None:
        parts = urlsplit(base_url)
        host = parts.netloc.rpartition("@")[2]  # who asks is told by a header
        self.root = parts._replace(
            netloc=host, path=parts.path.rstrip("/").removesuffix("/v1"), query="", fragment=""
        ).geturl()
        self.sent = dict(headers)
        proxies: dict[str, str] | None = {} if parts.hostname in LOOPBACK else None
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies), NoRedirect())
        self.seen: dict[str, Page] = {}

    def url(self, path: str) -> str:
        return self.root + path

    def page(self, path: str) -> Page:
        if path not in self.seen:
            self.seen[path] = self.ask(path)
        return self.seen[path]

    def ask(self, path: str) -> Page:
        try:
            request = urllib.request.Request(self.url(path), headers=self.sent)
            answer = fetch(request, TIMEOUT_S, self.opener)
        except (OSError, ValueError):
            return Page()
        return (
            Page(text=answer.body.decode("utf-8", "replace"), headers=answer.headers)
            if answer.status == 200
            else Page()
        )

    def text(self, path: str) -> str:
        return self.page(path).text

    def headers(self, path: str) -> Mapping[str, str]:
        return self.page(path).headers

    def document(self, path: str) -> Any:
        """Its JSON; ``None`` where it is none."""
        try:
            return json.loads(self.text(path))
        except (ValueError, RecursionError):
            return None
