"""The road to a server: TLS, proxies, headers, keys."""

import contextlib
import select
import shutil
import socket
import subprocess
import sys
import threading
from urllib.parse import urlsplit

import pytest

from llmopt.bench.connection import tunnel_answer
from llmopt.core.errors import ServerError
from llmopt.serve.process import free_port
from llmopt.serve.scripted import SERVER, running
from unit.bench.playing import FAST, kinds, run, schedule, truth


class Proxy:
    """Takes CONNECT and whole addresses, sends every host to one port, and keeps the heads that it saw."""

    def __init__(self, port, refusal=b""):
        self.port, self.refusal, self.heads = port, refusal, []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client):
        with contextlib.suppress(OSError), client, socket.create_connection(("127.0.0.1", self.port)) as server:
            head = client.recv(65536)
            if not head:
                return
            self.heads.append(head)
            if self.refusal:
                client.sendall(self.refusal)
                return
            if head.startswith(b"CONNECT"):
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                server.sendall(head)
            while ready := select.select([client, server], [], [], 10)[0]:
                for one in ready:
                    data = one.recv(65536)
                    if not data:
                        return
                    (server if one is client else client).sendall(data)


@pytest.fixture
def proxy(monkeypatch):
    """A proxy in front of a port, which the environment names for every host."""
    made = []

    def make(port, **options):
        made.append(Proxy(port, **options))
        for scheme in ("HTTP", "HTTPS"):
            monkeypatch.setenv(f"{scheme}_PROXY", made[-1].address)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        return made[-1]

    yield make
    for one in made:
        one.listener.shutdown(socket.SHUT_RDWR)
        one.listener.close()


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """(port of a TLS server for llm.test and localhost, its certificate)."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here")
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=llm.test",
         "-addext", "subjectAltName=DNS:llm.test,DNS:localhost", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    port = free_port(None)
    argv = [sys.executable, SERVER, "--port", str(port), "--tls", certificate, key]
    process = subprocess.Popen(argv)
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            select.select([], [], [], 0.05)
        yield port, certificate
    finally:
        process.kill()
        process.wait()


# --- TLS ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def trusted(tls, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(tls[1]))
    return f"https://localhost:{tls[0]}/v1"


def test_tls_with_a_certificate_that_is_trusted(trusted):
    result = run(trusted, schedule(8, users=2))
    assert kinds(result) == [None] * 8
    assert result.user_stamped == 0


def test_tls_keeps_its_connections(trusted):
    """A session ticket on an idle connection is no word of the server's."""
    assert run(trusted, schedule(60, users=4)).connections == 4
    assert run(trusted, schedule(20, offsets_ns=tuple(n * 10_000_000 for n in range(20)))).connections == 1


def test_tls_of_large_requests(trusted):
    plan = schedule([FAST + "&text=" + "x" * 300_000], tokens=2)
    assert kinds(run(trusted, plan)) == [None]


@pytest.mark.parametrize("trap", ["cut-close", "reset", "keepalive-close", "eof-body", "close-idle", "split-utf8"])
def test_traps_behind_tls(trusted, trap):
    expected = {"cut-close": "cut", "reset": "reset"}.get(trap)
    result = run(trusted, schedule([f"scripted?trap={trap}", FAST]))
    assert kinds(result) == [expected, None]


def test_a_certificate_that_nobody_signed(tls, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with pytest.raises(ServerError, match=r"no connection to localhost:.*self.signed certificate"):
        run(f"https://localhost:{tls[0]}/v1", schedule(1))


def test_a_certificate_of_another_host(trusted):
    with pytest.raises(ServerError, match=r"127\.0\.0\.1.*certificate is not valid for|IP address mismatch"):
        run(trusted.replace("localhost", "127.0.0.1"), schedule(1))


def test_tls_to_a_server_without_it(answering):
    url, _ = answering(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(ServerError, match=r"no connection to .*TLS: "):
        run(url.replace("http://", "https://"), schedule(1))


def test_a_handshake_without_an_end_is_given_up(server):
    with pytest.raises(ServerError, match="no connection within the time limit"):
        run(server.replace("http://", "https://"), schedule(1, request_timeout_s=0.3))


def test_no_tls_to_a_server_with_it(trusted):
    assert kinds(run(trusted.replace("https://", "http://"), schedule(1))) != [None]


# --- proxies ------------------------------------------------------------------------------------------------------


def test_a_plain_request_through_a_proxy(server, proxy):
    there = proxy(urlsplit(server).port)
    result = run("http://llm.test/v1", schedule(3))
    assert kinds(result) == [None] * 3
    assert all(head.startswith(b"POST http://llm.test:80/v1/completions ") for head in there.heads)


def test_tls_through_the_tunnel_of_a_proxy(trusted, tls, proxy):
    there = proxy(tls[0])
    result = run("https://llm.test/v1", schedule(6, users=2))
    assert kinds(result) == [None] * 6
    assert {head.partition(b"\r\n")[0] for head in there.heads} == {b"CONNECT llm.test:443 HTTP/1.1"}


@pytest.mark.parametrize("hosts", [None, "llm.test"])
def test_who_needs_no_proxy_is_asked_directly(server, proxy, monkeypatch, hosts):
    there = proxy(1)
    if hosts is None:
        assert kinds(run(server, schedule(1))) == [None]
    else:
        monkeypatch.setenv("NO_PROXY", hosts)
        with pytest.raises(ServerError, match=r"no connection to llm\.test"):
            run("http://llm.test/v1", schedule(1))
    assert there.heads == []


def test_a_proxy_that_refuses(trusted, tls, proxy):
    proxy(tls[0], refusal=b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n")
    with pytest.raises(ServerError, match=r"no connection to the proxy .*the proxy answers 407"):
        run("https://llm.test/v1", schedule(1))


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (b"HTTP/1.1 200 Conn", None),
        (b"HTTP/1.1 200 Connection established\r\n\r\n", ""),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "refused: the proxy answers 403"),
    ],
)
def test_what_a_proxy_said(raw, found):
    assert tunnel_answer(raw) == found


# --- headers and keys ---------------------------------------------------------------------------------------------


@pytest.fixture
def guarded(monkeypatch):
    monkeypatch.delenv("LLMOPT_API_KEY", raising=False)
    with running("--api-key", "sk-secret") as base_url:
        yield base_url


def test_the_key_opens_the_door_and_is_in_no_trace(guarded, monkeypatch):
    assert kinds(run(guarded, schedule(1))) == ["http_401"]
    monkeypatch.setenv("LLMOPT_API_KEY", "sk-secret")
    result = run(guarded, schedule(1))
    assert kinds(result) == [None]
    assert "sk-secret" not in repr(result)


def test_own_headers_reach_the_server(guarded):
    assert kinds(run(guarded, schedule(1), headers={"Authorization": "Bearer sk-secret"})) == [None]


def test_a_client_that_asks_to_close_gets_a_connection_for_each(server):
    result = run(server, schedule(4), headers={"Connection": "close"}, request_id="closing")
    assert kinds(result) == [None] * 4
    assert len({row["connection"] for row in truth(server, "closing")}) == 4
