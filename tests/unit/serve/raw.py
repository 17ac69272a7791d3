"""A socket that answers with bytes, whatever they are, as slowly as it is told."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator


@contextlib.contextmanager
def raw_server(answer: bytes, drip_s: float = 0.0) -> Iterator[str]:
    """Its root address; with ``drip_s`` a byte at a time, and once it has no more, the last one over and over."""
    ended = threading.Event()

    def serve(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.recv(65536)
            if not drip_s:
                client.sendall(answer)
                return
            place = 0
            while not ended.is_set():
                client.sendall(answer[place : place + 1] or answer[-1:])
                place += 1
                time.sleep(drip_s)

    def listen() -> None:
        with contextlib.suppress(OSError):
            while not ended.is_set():
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=listen, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        ended.set()
        with contextlib.suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
