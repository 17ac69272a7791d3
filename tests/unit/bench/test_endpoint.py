import base64
import socket

import pytest

from llmopt.bench.endpoint import API_KEY_VARIABLE, Endpoint, first_that_listens, parse_headers, proxy_for
from llmopt.core.errors import UsageError


@pytest.fixture(autouse=True)
def no_key_and_no_proxy(monkeypatch):
    for name in (API_KEY_VARIABLE, *(f"{scheme}_PROXY" for scheme in ("HTTP", "HTTPS", "ALL", "NO"))):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def head(url="http://localhost/v1", endpoint="chat", **fields):
    return Endpoint.of(url, endpoint, **fields).request(b"{}").decode().split("\r\n")


@pytest.mark.parametrize(
    ("url", "host", "port", "path", "tls"),
    [
        ("http://127.0.0.1:8000/v1", "127.0.0.1", 8000, "/v1/completions", False),
        ("https://example.org/v1/", "example.org", 443, "/v1/completions", True),
        ("http://localhost", "localhost", 80, "/completions", False),
        ("http://localhost/any/path/v1", "localhost", 80, "/any/path/v1/completions", False),
        ("http://[::1]:8000/v1", "::1", 8000, "/v1/completions", False),
    ],
)
def test_addresses(url, host, port, path, tls):
    assert Endpoint.of(url, "completions") == Endpoint(host=host, port=port, path=path, tls=tls)


def test_a_request_is_one_whole_message():
    assert head("http://[::1]:8000/v1", endpoint="completions") == [
        "POST /v1/completions HTTP/1.1",
        "Host: [::1]:8000",
        "Content-Type: application/json",
        "Accept: text/event-stream",
        "Content-Length: 2",
        "",
        "{}",
    ]


def test_the_api_key_goes_into_the_header_and_nowhere_else(monkeypatch):
    monkeypatch.setenv(API_KEY_VARIABLE, "secret")
    place = Endpoint.of("http://localhost/v1", "chat")
    assert b"\r\nAuthorization: Bearer secret\r\n" in place.request(b"{}")
    assert "secret" not in repr(place) + place.shown


def test_without_a_key_there_is_no_such_header():
    assert not any(line.startswith("Authorization") for line in head())


def test_own_headers_are_sent_and_not_shown():
    place = Endpoint.of("http://localhost/v1", "chat", {"X-Tenant": "secret"})
    assert b"\r\nX-Tenant: secret\r\n" in place.request(b"{}")
    assert "secret" not in repr(place)


def test_an_authorization_of_ones_own_goes_before_the_key(monkeypatch):
    monkeypatch.setenv(API_KEY_VARIABLE, "secret")
    lines = head(headers={"authorization": "Basic mine"})
    assert [line for line in lines if line.lower().startswith("authorization")] == ["authorization: Basic mine"]


def test_headers_from_words():
    assert parse_headers(["X-Tenant: a", "X-Time:  12:30 "]) == {"X-Tenant": "a", "X-Time": "12:30"}


@pytest.mark.parametrize(
    "name", ["Host", "content-type", "Content-Length", "Transfer-Encoding", "Connection", "Expect"]
)
def test_headers_that_are_the_clients_own(name):
    with pytest.raises(UsageError, match=f"the header {name} is the client's own"):
        parse_headers([f"{name}: x"])


def test_accept_and_request_id_of_ones_own_stand_in_place_of_ours():
    place = Endpoint.of("http://localhost/v1", "chat", {"accept": "*/*", "x-request-id": "mine"})
    lines = place.request(b"{}", "ours").decode().lower().split("\r\n")
    assert [line for line in lines if line.startswith(("accept", "x-request-id"))] == [
        "accept: */*",
        "x-request-id: mine",
    ]


def test_the_query_of_the_address_stays_behind_the_path_and_is_not_shown():
    place = Endpoint.of("http://localhost/v1?api-version=1&key=secret", "chat")
    assert place.request(b"").startswith(b"POST /v1/chat/completions?api-version=1&key=secret HTTP/1.1\r\n")
    assert "secret" not in repr(place) + place.shown


def test_a_login_in_the_address_is_basic_authorization():
    place = Endpoint.of("http://me:pass%20word@localhost/v1", "chat")
    assert b"\r\nAuthorization: Basic " + base64.b64encode(b"me:pass word") + b"\r\n" in place.request(b"")
    assert "me" not in place.shown.split("/v1")[0]


def test_secrets_are_all_that_nobody_may_repeat(monkeypatch):
    monkeypatch.setenv(API_KEY_VARIABLE, "sk-key")
    monkeypatch.setenv("HTTP_PROXY", "http://me:word@proxy")
    place = Endpoint.of("http://llm.test/v1?key=query", "chat", {"X-Tenant": "tenant"})
    login = "Basic " + base64.b64encode(b"me:word").decode()
    assert set(place.secrets()) == {"sk-key", "tenant", "key=query", login}


def test_of_several_addresses_the_first_that_listens_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        found = [(socket.AF_INET, 0, 0, "", s.getsockname()) for s in (deaf, listener, deaf)]
        assert first_that_listens(found, 1.0) == (socket.AF_INET, listener.getsockname())


@pytest.mark.parametrize("word", ["bad", ": x", "a b: x", "X: a\r\nY: b", ""])
def test_what_is_no_header(word):
    with pytest.raises(UsageError, match="--header"):
        parse_headers([word])


# --- proxies ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["http://127.0.0.1/v1", "http://localhost/v1", "http://[::1]/v1"])
def test_this_machine_is_reached_directly(monkeypatch, url):
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:3128")
    assert Endpoint.of(url, "chat").proxy is None


def test_a_plain_request_through_a_proxy_names_the_whole_address(monkeypatch):
    monkeypatch.setenv("http_proxy", "proxy:3128")
    place = Endpoint.of("http://llm.test/v1", "chat")
    assert place.dial == ("proxy", 3128)
    assert place.request(b"").startswith(b"POST http://llm.test:80/v1/chat/completions HTTP/1.1\r\n")
    assert place.tunnel() == b""


def test_tls_goes_through_a_tunnel_and_tells_the_proxy_alone_who_we_are(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://me:pass%20word@proxy:3128")
    place = Endpoint.of("https://llm.test/v1", "chat")
    login = base64.b64encode(b"me:pass word")
    assert place.tunnel().startswith(b"CONNECT llm.test:443 HTTP/1.1\r\n")
    assert b"\r\nProxy-Authorization: Basic " + login in place.tunnel()
    assert login not in place.request(b"")
    assert "pass" not in repr(place)


@pytest.mark.parametrize(("hosts", "proxied"), [("llm.test", False), (".test", False), ("*", False), ("other", True)])
def test_hosts_that_need_no_proxy(monkeypatch, hosts, proxied):
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", hosts)
    assert (proxy_for("http", "llm.test") is not None) is proxied


def test_a_proxy_that_we_cannot_speak_to(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "socks5://proxy:1080")
    with pytest.raises(UsageError, match="HTTP_PROXY"):
        proxy_for("http", "llm.test")
