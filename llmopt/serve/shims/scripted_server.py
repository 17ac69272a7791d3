"""The fake engine: an OpenAI-compatible server whose speed and faults are scripted; standard library only.

Token n of a request is written at ``start + ttft + n × tpot`` by an absolute clock, where
start is when one of ``--max-num-seqs`` slots became free.  ``GET /scripted/log`` returns,
per request, the CLOCK_MONOTONIC stamps of what it really did: the truth that the load
client is tested against.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from typing import Any


class Server:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.slots = asyncio.Semaphore(arguments.max_num_seqs)
        self.log: list[dict[str, Any]] = []

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                received = time.monotonic_ns()
                length = next(
                    (int(h.split(":")[1]) for h in head.split("\r\n") if h.lower().startswith("content-length")), 0
                )
                body = json.loads(await reader.readexactly(length)) if length else {}
                await self.answer(head.split(" ")[1], body, writer, received)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def answer(self, path: str, body: dict[str, Any], writer: asyncio.StreamWriter, received: int) -> None:
        if path == "/scripted/log":
            self.whole(writer, 200, self.log)
        elif not path.endswith("completions"):
            self.whole(writer, 200, {"status": "ok", "data": [{"id": "scripted"}]})
        elif self.arguments.fault == "error" and body.get("stream"):
            self.whole(writer, 500, {"error": {"message": "scripted error"}})
        else:
            async with self.slots:
                if body.get("stream"):
                    await self.stream(body, writer, received)
                else:
                    usage = {"prompt_tokens": 1, "completion_tokens": body["max_tokens"]}
                    self.whole(writer, 200, {"choices": [{"text": "x", "finish_reason": "length"}], "usage": usage})

    def whole(self, writer: asyncio.StreamWriter, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        writer.write(
            b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (status, len(data))
            + data
        )

    async def stream(self, body: dict[str, Any], writer: asyncio.StreamWriter, received: int) -> None:
        start, count, script = time.monotonic_ns(), int(body["max_tokens"]), self.arguments
        count = count if script.output_tokens is None else min(count, script.output_tokens)
        prompt_tokens = script.prompt_tokens or max(1, len(str(body.get("prompt", "")).split()))
        chat = "messages" in body
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        if chat:
            event(writer, {"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
        stamps, sent = [], 0
        while sent < count:
            due = start + int((script.ttft_ms + sent * script.tpot_ms) * 1e6)
            await asyncio.sleep(max(0.0, (due - time.monotonic_ns()) / 1e9))
            size = min(script.tokens_per_chunk, count - sent)
            sent += size
            if script.fault == "cut" and sent > count // 2:
                writer.write(b"0\r\n\r\n")  # the body ends cleanly although the answer does not
                return
            text = "x" * size
            choice = {"delta": {"content": text}} if chat else {"text": text}
            chunk: dict[str, Any] = {"choices": [{"index": 0, **choice, "finish_reason": None}]}
            if script.usage_per_chunk:
                chunk["usage"] = {"prompt_tokens": prompt_tokens, "completion_tokens": sent}
            stamps.append(time.monotonic_ns())
            event(writer, chunk)
            await writer.drain()
        self.log.append({"received_ns": received, "start_ns": start, "token_ns": stamps})
        empty: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
        event(
            writer,
            {"choices": [{"index": 0, **empty, "finish_reason": "length" if count == body["max_tokens"] else "stop"}]},
        )
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": count}
        usage |= {"prompt_tokens_details": {"cached_tokens": 0}}
        event(writer, {"choices": [], "usage": usage})
        writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")


def event(writer: asyncio.StreamWriter, value: dict[str, Any]) -> None:
    data = b"data: " + json.dumps(value).encode() + b"\n\n"
    writer.write(b"%x\r\n%s\r\n" % (len(data), data))


async def serve(arguments: argparse.Namespace) -> None:
    server = Server(arguments)
    listener = await asyncio.start_server(server.handle, arguments.host, arguments.port)
    async with listener:
        await listener.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument("--ttft-ms", type=float, default=20)
    parser.add_argument("--tpot-ms", type=float, default=2)
    parser.add_argument("--tokens-per-chunk", type=int, default=1)
    parser.add_argument("--output-tokens", type=int, default=None, help="stop earlier than asked")
    parser.add_argument("--prompt-tokens", type=int, default=None, help="report this prompt length")
    parser.add_argument("--no-usage-per-chunk", dest="usage_per_chunk", action="store_false")
    parser.add_argument("--fault", choices=["die", "hang", "cut", "error"], default=None)
    arguments = parser.parse_args()
    if arguments.fault == "die":
        sys.exit("scripted death: as asked")
    if arguments.fault == "hang":
        time.sleep(3600)
    asyncio.run(serve(arguments))


if __name__ == "__main__":
    main()
