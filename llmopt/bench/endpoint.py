"""Where requests go: the address, the road to it (TLS, proxy), and the bytes of one request."""

from __future__ import annotations

import base64
import ipaddress
import os
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from llmopt.core.errors import UsageError

if TYPE_CHECKING:
    import ssl

API_KEY_VARIABLE = "LLMOPT_API_KEY"
OUR_HEADERS = ("host", "content-type", "content-length", "transfer-encoding", "connection", "expect")
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
    query: str = field(default="", repr=False)  # may hold a key
    proxy: Proxy | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, base_url: str, endpoint: str, headers: Mapping[str, str] | None = None) -> Endpoint:
        parts = urlsplit(base_url)
        headers = dict(headers or {})
        if parts.username and "authorization" not in {name.lower() for name in headers}:
            headers["Authorization"] = basic(parts.username, parts.password)
        tls, host = parts.scheme == "https", parts.hostname or ""
        return cls(
            host=host,
            port=parts.port or (443 if tls else 80),
            path=parts.path.rstrip("/") + PATHS[endpoint],
            query=parts.query,
            tls=tls,
            proxy=proxy_for(parts.scheme, host),
            headers=headers,
        )

    @property
    def shown(self) -> str:
        """The address as people read it; a query may hold a key and stays out of it."""
        return f"{'https' if self.tls else 'http'}://{bracketed(self.host)}:{self.port}{self.path}"

    @property
    def dial(self) -> tuple[str, int]:
        """Who is connected to: the proxy, where there is one."""
        return (self.proxy.host, self.proxy.port) if self.proxy else (self.host, self.port)

    @property
    def target(self) -> str:
        """The request target: a proxy without a tunnel wants the whole address (RFC 9112, 3.2.2)."""
        place = self.shown if self.proxy and not self.tls else self.path
        return f"{place}?{self.query}" if self.query else place

    def secrets(self) -> tuple[str, ...]:
        """What must not appear in anything that a server's words reach."""
        found = [os.environ.get(API_KEY_VARIABLE), *self.headers.values(), self.query]
        found += [self.proxy.authorization] if self.proxy else []
        return tuple(sorted({word for word in found if word and len(word) > 3}, key=len, reverse=True))

    def identified(self) -> dict[str, str]:
        """The headers that say who asks, for questions beside the measured ones."""
        key = os.environ.get(API_KEY_VARIABLE)
        named = {name.lower() for name in self.headers}
        return dict(self.headers) | ({"Authorization": f"Bearer {key}"} if key and "authorization" not in named else {})

    def head(self) -> bytes:
        """The part of the head that all requests share."""
        named = {name.lower() for name in self.headers}
        lines = [
            f"POST {self.target} HTTP/1.1",
            f"Host: {bracketed(self.host)}:{self.port}",
            "Content-Type: application/json",
        ]
        if "accept" not in named:
            lines.append("Accept: text/event-stream")
        if (key := os.environ.get(API_KEY_VARIABLE)) and "authorization" not in named:
            lines.append(f"Authorization: Bearer {key}")
        if self.proxy and self.proxy.authorization and not self.tls:
            lines.append(f"Proxy-Authorization: {self.proxy.authorization}")
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n"

    def request(self, body: bytes, request_id: str = "") -> bytes:
        """One whole HTTP/1.1 message."""
        given = any(name.lower() == "x-request-id" for name in self.headers)
        named = b"X-Request-Id: %s\r\n" % request_id.encode() if request_id and not given else b""
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
                answer.append(first_that_listens(socket.getaddrinfo(*self.dial, type=socket.SOCK_STREAM), limit_s))
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


def first_that_listens(found: list[Any], limit_s: float) -> tuple[int, tuple[str, int]]:
    """Of several addresses (``localhost`` is ::1 and 127.0.0.1) the first that takes a connection, else the last."""
    for family, _, _, _, address in found[:-1]:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.settimeout(limit_s / len(found))
            if probe.connect_ex(address) == 0:
                return family, address
    return found[-1][0], found[-1][4]


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
    return Proxy(
        host=parts.hostname,
        port=parts.port or 80,
        authorization=basic(parts.username, parts.password) if parts.username else None,
    )


def basic(user: str, password: str | None) -> str:
    """The value of an ``Authorization`` header for a user in an address (RFC 7617)."""
    login = f"{unquote(user)}:{unquote(password or '')}"
    return f"Basic {base64.b64encode(login.encode()).decode()}"


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
        if name.strip().lower() in OUR_HEADERS:
            raise UsageError(f"the header {name.strip()} is the client's own", hint="leave it out")
        found[name.strip()] = value.strip()
    return found
