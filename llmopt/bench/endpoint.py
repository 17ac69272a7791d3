"""Where requests go: the address, the road to it (TLS, proxy), and the bytes of one request."""

from __future__ import annotations

import base64
import ipaddress
import os
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from llmopt.core.errors import UsageError

if TYPE_CHECKING:
    import ssl

API_KEY_VARIABLE = "LLMOPT_API_KEY"
PATHS = {"chat": "/chat/completions", "completions": "/completions"}


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """An HTTP proxy; ``authorization`` is a header value and never printed."""

    host: str
    port: int
    authorization: str | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One URL to post to. The API key comes from ``LLMOPT_API_KEY`` alone and is in no field that is shown or stored."""

    host: str
    port: int
    path: str
    tls: bool
    proxy: Proxy | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, base_url: str, endpoint: str, headers: Mapping[str, str] | None = None) -> Endpoint:
        parts = urlsplit(base_url)
        tls, host = parts.scheme == "https", parts.hostname or ""
        return cls(
            host=host,
            port=parts.port or (443 if tls else 80),
            path=parts.path.rstrip("/") + PATHS[endpoint],
            tls=tls,
            proxy=proxy_for(parts.scheme, host),
            headers=headers or {},
        )

    @property
    def shown(self) -> str:
        """The address as people read it."""
        return f"{'https' if self.tls else 'http'}://{bracketed(self.host)}:{self.port}{self.path}"

    @property
    def dial(self) -> tuple[str, int]:
        """Who is connected to: the proxy, where there is one."""
        return (self.proxy.host, self.proxy.port) if self.proxy else (self.host, self.port)

    @property
    def target(self) -> str:
        """The request target: a proxy without a tunnel wants the whole address (RFC 9112, 3.2.2)."""
        return self.shown if self.proxy and not self.tls else self.path

    def head(self) -> bytes:
        """The part of the head that all requests share."""
        lines = [
            f"POST {self.target} HTTP/1.1",
            f"Host: {bracketed(self.host)}:{self.port}",
            "Content-Type: application/json",
            "Accept: text/event-stream",
        ]
        named = {name.lower() for name in self.headers}
        if (key := os.environ.get(API_KEY_VARIABLE)) and "authorization" not in named:
            lines.append(f"Authorization: Bearer {key}")
        if self.proxy and self.proxy.authorization and not self.tls:
            lines.append(f"Proxy-Authorization: {self.proxy.authorization}")
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n"

    def request(self, body: bytes, request_id: str = "") -> bytes:
        """One whole HTTP/1.1 message."""
        named = b"X-Request-Id: %s\r\n" % request_id.encode() if request_id else b""
        return self.head() + named + b"Content-Length: %d\r\n\r\n" % len(body) + body

    def tunnel(self) -> bytes:
        """The CONNECT that asks a proxy for a tunnel (RFC 9110, 9.3.6); empty where none is needed."""
        if not (self.proxy and self.tls):
            return b""
        place = f"{bracketed(self.host)}:{self.port}"
        known = self.proxy.authorization
        return (
            f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n"
            + (f"Proxy-Authorization: {known}\r\n" if known else "")
            + "\r\n"
        ).encode("latin-1")

    def resolve(self, limit_s: float = 10.0) -> tuple[int, tuple[str, int]]:
        """(address family, socket address), looked up once so that no request waits for a name server.

        The system's resolver has no time limit of its own: it is asked in a thread that may be left behind.  Raises
        OSError, which TimeoutError is one of.
        """
        answer: list[tuple[int, tuple[str, int]] | OSError] = []

        def look_up() -> None:
            try:
                family, _, _, _, address = socket.getaddrinfo(*self.dial, type=socket.SOCK_STREAM)[0]
                answer.append((family, address))  # type: ignore[arg-type]
            except (OSError, UnicodeError) as error:
                answer.append(error if isinstance(error, OSError) else OSError(f"{self.host!r} is no host name"))

        thread = threading.Thread(target=look_up, daemon=True)
        thread.start()
        thread.join(limit_s)
        if not answer:
            raise TimeoutError(f"the name {self.dial[0]} was not resolved within {limit_s:g} s")
        if isinstance(answer[0], OSError):
            raise answer[0]
        return answer[0]


def bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def proxy_for(scheme: str, host: str) -> Proxy | None:
    """The proxy that HTTP(S)_PROXY and NO_PROXY name for a host; this machine itself is always reached directly."""
    if not any(name.lower().endswith("_proxy") for name in os.environ):
        return None
    from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

    known = getproxies_environment()
    address = known.get(scheme) or known.get("all")
    if not address or is_loopback(host) or proxy_bypass_environment(host, known):
        return None
    parts = urlsplit(address if "://" in address else f"http://{address}")
    if parts.scheme != "http" or not parts.hostname:
        raise UsageError(
            f"the proxy of {scheme.upper()}_PROXY is not of a kind that llmopt speaks", hint="http://HOST:PORT"
        )
    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else ""
    return Proxy(
        host=parts.hostname,
        port=parts.port or 80,
        authorization=f"Basic {base64.b64encode(login.encode()).decode()}" if login else None,
    )


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def tls_context() -> ssl.SSLContext:
    """The system's trust store, or what SSL_CERT_FILE names; HTTP/1.1 only."""
    import ssl

    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def parse_headers(words: list[str]) -> dict[str, str]:
    """``["X-Tenant: a"]`` → ``{"X-Tenant": "a"}``; raises UsageError."""
    found = {}
    for word in words:
        name, colon, value = word.partition(":")
        if not colon or not name.strip() or any(c in word for c in "\r\n\0") or " " in name.strip():
            raise UsageError("a --header is not of the form 'Name: value'", hint="--header 'X-Tenant: a'")
        found[name.strip()] = value.strip()
    return found
