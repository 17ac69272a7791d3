"""One scripted server for every test that only asks it something: what it does is said by each request's model."""

import contextlib
import socket
import threading
import time

import pytest

from llmopt.serve.scripted import running


@pytest.fixture(scope="package")
def server():
    """Its base URL."""
    with running("--ttft-ms", "20", "--tpot-ms", "5") as base_url:
        yield base_url


@pytest.fixture
def answering():
    """A server that says the same bytes to every connection, once; its address and what it was told."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        told = []

        def start(*pieces, linger_s=0.0):
            def answer(connection):
                with connection, contextlib.suppress(OSError):
                    told.append(connection.recv(1 << 20))
                    for piece in pieces:
                        connection.sendall(piece)
                    time.sleep(linger_s)

            def serve():
                with contextlib.suppress(OSError):
                    while True:
                        threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

            threading.Thread(target=serve, daemon=True).start()
            return f"http://127.0.0.1:{listener.getsockname()[1]}/v1", told

        yield start
        listener.shutdown(socket.SHUT_RDWR)
