import socket
import time

import psutil
import pytest

from llmopt.core.domain import ServerCommand
from llmopt.core.environments import Environment
from llmopt.core.errors import ServerError
from llmopt.serve import backend
from llmopt.serve.process import answers, completes, emptiness, fetch, free_port, refusal, with_known_pair
from unit.serve.raw import raw_server


def test_a_server_is_ready_when_it_is_entered(scripted):
    with scripted.serve() as server:
        assert completes(server.command, 5)
        assert 0 < server.load_s < 20


def test_nothing_of_a_server_is_left(scripted):
    with scripted.serve() as server:
        pass
    assert not psutil.pid_exists(server.pid)
    assert not answers(server.command.base_url)


def test_nothing_is_left_after_an_error_either(scripted):
    with pytest.raises(RuntimeError), scripted.serve() as server:
        raise RuntimeError
    assert not psutil.pid_exists(server.pid)


def test_a_server_that_dies_tells_its_cause_and_remedy(scripted):
    told = "died while loading: it was told to die: as asked"
    with pytest.raises(ServerError, match=told) as caught, scripted.serve("--fault", "die"):
        pass
    assert "take --fault away" in caught.value.hint
    assert "log" in caught.value.hint


def test_a_word_that_the_server_does_not_know_is_named(scripted):
    with (
        pytest.raises(ServerError, match="does not know an option: --no-such-option"),
        scripted.serve("--no-such-option"),
    ):
        pass


def test_a_server_that_hangs_is_given_up_after_the_time_that_was_given(scripted):
    with pytest.raises(ServerError, match="not ready after 1 s"), scripted.serve("--fault", "hang", ready_timeout_s=1):
        pass


def test_a_server_that_dies_later_is_noticed(scripted):
    with scripted.serve() as server:
        psutil.Process(server.pid).kill()
        server.process.wait(5)
        with pytest.raises(ServerError, match="died while it was measured"):
            server.require_alive(backend("scripted"))


def test_the_wanted_port_is_used(scripted):
    port = free_port(None)
    with scripted.serve(port=port) as server:
        assert f":{port}/" in server.command.base_url


def test_a_port_in_use_is_refused():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ServerError, match="in use") as caught:
            free_port(other.getsockname()[1])
    assert "--port" in caught.value.hint


@pytest.mark.parametrize("port", [70_000, -1])
def test_a_port_that_is_none_is_refused(port):
    with pytest.raises(ServerError):
        free_port(port)


@pytest.mark.parametrize(
    ("answer", "lack"),
    [
        ({"choices": []}, "an answer without choices"),
        ({"choices": [{"text": ""}]}, "an answer without a token"),
        ({"choices": [{"text": ""}], "usage": {"completion_tokens": 0}}, "an answer without a token"),
        ({"choices": [{"text": ""}], "usage": {"completion_tokens": 1}}, ""),
        ({"choices": [{"text": " there"}]}, ""),
    ],
)
def test_a_server_that_answers_nothing_is_not_ready(answer, lack):
    assert emptiness(answer) == lack


@pytest.fixture
def bad_pair(tmp_path):
    """An environment with versions that do not go together."""
    for package in ("ray-2.60.0", "fastapi-0.165.0"):
        name, _, version = package.partition("-")
        folder = tmp_path / "lib" / "python3.11" / "site-packages" / f"{package}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return Environment(python=tmp_path / "bin/python", prefix=tmp_path, origin="user")


def test_a_failure_that_nothing_explains_names_versions_that_do_not_go_together(bad_pair):
    told = with_known_pair(ServerError("rayserve was not ready after 900 s", hint="its log: x"), bad_pair)
    assert told.hint.startswith("its log: x; or it is ray 2.60.0 with fastapi 0.165.0")
    assert "pip install fastapi" in told.hint


def test_one_that_is_explained_names_none(bad_pair):
    error = ServerError("rayserve died while loading: the port is taken", hint="name another one: --port   (log: x)")
    assert with_known_pair(error, bad_pair) is error


def test_a_failure_in_a_container_is_only_itself():
    error = ServerError("died", hint="why")
    assert with_known_pair(error, None) is error


NO_HTTP = (b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx", b"\x00\xff\r\n\r\n", b"")


@pytest.mark.parametrize("answer", [*NO_HTTP, b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 100_000])
def test_an_answer_that_is_no_completion_is_a_reason_and_no_crash(answer):
    with raw_server(answer) as root:
        command = ServerCommand(argv=(), base_url=f"{root}/v1", model="m")
        assert isinstance(answers(f"{root}/health"), bool)
        assert refusal(command, 5)


@pytest.mark.parametrize("begin", [b"H", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_a_server_that_drips_is_waited_for_no_longer_than_was_said(begin):
    with raw_server(begin + b"x", drip_s=0.05) as root:
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            fetch(root, 0.6)
        assert time.monotonic() - started < 2


def test_an_endless_body_is_read_up_to_a_limit():
    with raw_server(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100_000) as root:
        assert len(fetch(root, 5, most_bytes=1000).body) == 1000
