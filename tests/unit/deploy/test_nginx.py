from __future__ import annotations

import contextlib
import re
from typing import Any

import pytest
from hypothesis import given

from llmopt.core.errors import UsageError
from llmopt.deploy.limits import doubts
from llmopt.deploy.nginx import nginx_conf, require_host_name
from llmopt.deploy.plan import Figure
from tests.unit.deploy import hostile
from tests.unit.deploy.make import deployment

REPLICAS = ("127.0.0.1:8101", "127.0.0.1:8102")


def conf(**changes: Any) -> str:
    return nginx_conf(deployment(**changes), upstreams=REPLICAS)


def directive(text: str, name: str) -> list[str]:
    """The parameters of a directive, wherever it stands."""
    return re.findall(rf"^\s*{name} ([^;{{]*);", text, re.MULTILINE)


def test_every_replica_is_one_upstream_and_the_least_busy_is_asked() -> None:
    text = conf()
    assert [w.split()[0] for w in directive(text, "server") if "backup" not in w] == list(REPLICAS)
    assert "least_conn;" in text


def test_with_all_of_them_out_every_one_is_asked_nonetheless() -> None:
    assert [w.split()[0] for w in directive(conf(), "server") if "max_fails=0 backup" in w] == list(REPLICAS)


def test_streams_are_not_held_back() -> None:
    assert "off" in directive(conf(), "proxy_buffering")


def test_the_rate_is_twice_the_measured_capacity_unless_another_is_asked_for() -> None:
    assert "rate=21r/s" in conf()  # of two replicas, by the upper end: 2 × 2 × 5.2
    assert "rate=90r/m" in conf(wishes={"rate_limit_rps": 1.5})


def test_the_burst_is_all_users_of_all_replicas_twice() -> None:
    assert directive(conf(), "limit_req") == ["zone=clients burst=64 nodelay"]


def test_without_a_measured_capacity_nobody_is_limited() -> None:
    assert "limit_req" not in conf(capacity={"total_rps": None}, evidence={"figures": {}})


def test_the_load_that_was_measured_is_never_refused_however_wide_its_interval() -> None:
    wide = {"requests_per_s": Figure(value=17.6, low=6.0, high=29.0)}
    assert "rate=116r/s" in conf(evidence={"figures": wide}, capacity={"total_rps": 12.0})


@pytest.mark.parametrize(("asked", "told"), [(None, False), (10.4, False), (10.3, True)])
def test_a_limit_below_what_was_measured_is_doubted(asked: float | None, told: bool) -> None:
    """Of two replicas, by the upper end: 2 × 5.2."""
    found = doubts(deployment(wishes={"rate_limit_rps": asked}))
    assert [words.split(":")[0] for words in found] == [
        "--rate-limit 10.3 is less than the 10.4 requests/s that 2 replicas may take (one was measured with up to 5.2)"
    ] * told


def test_a_limit_below_an_unknown_load_is_not_doubted() -> None:
    unknown = {"capacity": {"total_rps": None}, "evidence": {"figures": {}}}
    assert doubts(deployment(wishes={"rate_limit_rps": 0.1}, **unknown)) == ()


@pytest.mark.parametrize(
    ("target", "asked", "monitoring", "told"),
    [
        ("shell", 0.03, True, True),
        ("shell", 0.04, True, False),
        ("shell", 0.03, False, False),
        ("kubernetes", 0.03, True, False),
    ],
)
def test_a_limit_that_a_canary_is_above_by_itself_is_doubted(
    target: str, asked: float, monitoring: bool, told: bool
) -> None:
    (words,) = doubts(deployment(wishes={"target": target, "rate_limit_rps": asked, "monitoring": monitoring}))
    assert ("the canary, whose request every 30 s is more than that by itself" in words) == told


def test_a_slow_answer_is_never_asked_for_twice() -> None:
    text = conf()
    read = max(int(t.removesuffix("s")) for t in directive(text, "proxy_read_timeout"))
    retry = max(int(t.removesuffix("s")) for t in directive(text, "proxy_next_upstream_timeout"))
    assert retry < read


def test_an_error_of_the_engine_is_not_passed_on_to_the_next() -> None:
    assert "http_500" not in directive(conf(), "proxy_next_upstream")[-1]


def test_the_longest_answer_that_fits_the_context_is_waited_for() -> None:
    slow = {"tpot_p95": Figure(value=0.1, unit="s"), "ttft_p95": Figure(value=0.4, unit="s")}
    assert "410s" in directive(conf(evidence={"figures": slow}), "proxy_read_timeout")


def test_tls_only_where_it_is_asked_for() -> None:
    assert not directive(conf(), "ssl_certificate")
    text = conf(wishes={"tls": True, "domain": "llm.example.org"})
    assert directive(text, "ssl_certificate") == ["/certs/tls.crt"]
    assert "llm.example.org" in directive(text, "server_name")


@pytest.mark.parametrize(("length", "taken"), [(253, True), (254, False)])
def test_a_host_name_is_no_longer_than_names_may_be(length: int, taken: bool) -> None:
    name = ("a." * 150)[:length].removesuffix(".").ljust(length, "a")
    with contextlib.nullcontext() if taken else pytest.raises(UsageError, match="no host name"):
        require_host_name(name)


@given(hostile.word)
def test_a_domain_is_a_host_name_or_refused(name: str) -> None:
    if re.fullmatch(r"[a-zA-Z0-9.-]+", name, re.ASCII):
        return
    with pytest.raises(UsageError, match="no host name"):
        conf(wishes={"domain": name})


def test_a_path_with_a_dollar_is_refused_for_nginx_would_expand_it() -> None:
    with pytest.raises(UsageError, match="nginx would expand"):
        nginx_conf(deployment(), upstreams=REPLICAS, access_log="/srv/$HOME/access.log")


def test_the_log_has_no_header_of_a_client() -> None:
    text = conf()
    assert "$http_" not in text
    assert "$request_body" not in text
