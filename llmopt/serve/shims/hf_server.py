"""A thin OpenAI-compatible server over transformers; runs inside the engine's environment.

Two processes: this one speaks HTTP and never imports torch; its child (hf_engine.py) runs
the model.  They talk over a pipe.  The generating thread itself writes each token to the
pipe the moment it exists, so that no event loop stands between a token and its chunk.
What this one sees of each request it counts (hf_counters.py) and shows under ``/metrics``.

Greedy decoding only.  One chunk per token; with ``stream_options.continuous_usage_stats``
each chunk carries the usage so far, so that a client can count without tokenizing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Run by its path, this is a script beside its parts; imported, a module of the package.
# isort: off
if TYPE_CHECKING or __package__:
    from llmopt.serve.shims.hf_counters import Counters, Times
    from llmopt.serve.shims.hf_engine import run_engine
    from llmopt.serve.shims.hf_memory import proportional_set_bytes
    from llmopt.serve.shims.hf_news import News
else:
    from hf_counters import Counters, Times
    from hf_engine import run_engine
    from hf_memory import proportional_set_bytes
    from hf_news import News
# isort: on

DEFAULT_MAX_TOKENS = 16
FACTS = "llmopt facts: "  # begins the one line of the log that tells where memory goes


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--max-num-seqs", type=int, default=4)
    parser.add_argument("--served-model-name", default=None, help="what requests ask for, if not the folder's name")
    parser.add_argument("--max-model-len", type=int, default=None)
    parser.add_argument("--max-num-batched-tokens", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--attn-implementation", default="sdpa")
    parser.add_argument("--batching", choices=("continuous", "static"), default="continuous")
    parser.add_argument("--block-size", type=int, default=32, help="tokens of a block of the KV cache")
    parser.add_argument("--enable-prefix-caching", action="store_true", help="share blocks of prompts that begin alike")
    parser.add_argument("--enforce-eager", action="store_true", help="no CUDA graphs")
    parser.add_argument("--device-map", default=None)
    parser.add_argument(
        "--dynamic-int8", action="store_true", help="quantize the linear layers to int8 in memory (CPU)"
    )
    return parser.parse_args()


class BadRequest(Exception):
    """What a client asked for and this server cannot do."""

    status, kind = 400, "invalid_request_error"


class NoSuchModel(BadRequest):
    status, kind = 404, "not_found_error"


class Engine:
    """The parent's end of the pipe: one queue of news per running request."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=run_engine, args=(arguments, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.queues: dict[str, asyncio.Queue[News]] = {}
        self.names = (f"cmpl-{n}" for n in itertools.count())
        self.context_length: int | None = None
        self.counters = Counters()

    def listen(self) -> None:
        asyncio.get_running_loop().add_reader(self.pipe.fileno(), self.receive)

    def receive(self) -> None:
        try:
            word, value = self.pipe.recv()
        except (EOFError, OSError):
            print("the engine process died", file=sys.stderr, flush=True)
            os._exit(1)
        if word == "ready":
            self.context_length, facts = value
            tell(facts)
            return
        if word == "facts":
            tell(value)
            return
        for news in value:
            if (queue := self.queues.get(news.request)) is not None:
                queue.put_nowait(news)

    async def generate(self, ids: list[int], max_tokens: int, end_ids: list[int], times: Times) -> AsyncIterator[News]:
        """All tokens so far, each time there is a new one. Raises RuntimeError when the engine gives the request up."""
        name, queue = next(self.names), asyncio.Queue[News]()
        self.queues[name] = queue
        self.pipe.send(("add", name, ids, max_tokens, end_ids or [-1]))
        finished = False
        try:
            while not finished:
                news = await queue.get()
                finished = news.finished
                if news.error:
                    raise RuntimeError(news.error)
                times.take(len(news.tokens), news.scheduled_s, news.cached)
                yield news
            self.counters.add(times)
        finally:
            del self.queues[name]
            if not finished:
                self.pipe.send(("cancel", name))


def tell(facts: dict[str, Any]) -> None:
    """Where the memory of both processes goes."""
    baseline = facts["baseline_bytes"]
    whole = None if baseline is None else baseline + (proportional_set_bytes() or 0)
    # One write with its end: the log is the engine process's too, whose words would come in between.
    sys.stdout.write(f"{FACTS}{json.dumps(facts | {'baseline_bytes': whole})}\n")
    sys.stdout.flush()


class Texts:
    """Token ids to text and back, with the tokenizer alone."""

    def __init__(self, model: Path) -> None:
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        architecture = json.loads((model / "config.json").read_text())
        told = architecture.get("vocab_size") or (architecture.get("text_config") or {}).get("vocab_size")
        self.vocabulary: int = told or self.tokenizer.get_vocab_size()
        end = architecture.get("eos_token_id")
        self.end_ids: list[int] = [] if end is None else end if isinstance(end, list) else [end]
        template, config = model / "chat_template.jinja", model / "tokenizer_config.json"
        self.settings: dict[str, Any] = json.loads(config.read_text()) if config.exists() else {}
        older = self.settings.get("chat_template")
        self.chat_template = template.read_text() if template.exists() else older if isinstance(older, str) else None

    def prompt(self, body: dict[str, Any]) -> list[int]:
        if "messages" in body:
            text: Any = self.chat(body["messages"])
        else:
            text = body.get("prompt")
        ids: list[int] = text if isinstance(text, list) else self.encoded(text)
        if not ids or not all(type(i) is int for i in ids):  # a bool is an int too, and no token
            raise BadRequest("prompt must be a text or a list of token ids")
        if not all(0 <= i < self.vocabulary for i in ids):
            raise BadRequest(f"token ids go from 0 to {self.vocabulary - 1}")
        return ids

    def encoded(self, text: Any) -> list[int]:
        if not isinstance(text, str) or not text:
            raise BadRequest("prompt must be a text or a list of token ids")
        try:
            ids: list[int] = self.tokenizer.encode(text).ids
        except (TypeError, ValueError) as error:  # a half of a surrogate pair
            raise BadRequest(f"prompt is no text: {error}") from None
        return ids

    def chat(self, messages: Any) -> str:
        if self.chat_template is None:
            raise BadRequest("this model has no chat template: use /v1/completions")
        if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
            raise BadRequest("messages must be a list of objects with a role and a content")
        messages = [joined_text(message) for message in messages]
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        # The same options as transformers, or templates over several lines gain blank ones.
        jinja = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        tokens = {name: self.settings.get(name) for name in ("bos_token", "eos_token")}
        texts = {name: t.get("content") if isinstance(t, dict) else t or "" for name, t in tokens.items()}
        template = jinja.from_string(self.chat_template)
        try:
            return str(template.render(messages=messages, add_generation_prompt=True, **texts))
        except Exception as error:  # a template is a program of the model's makers: it may raise what it likes
            raise BadRequest(f"the chat template does not take these messages: {error}") from None


def application(arguments: argparse.Namespace) -> Any:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
    from starlette.routing import Route

    engine, texts = Engine(arguments), Texts(Path(arguments.model))
    name = arguments.served_model_name or Path(arguments.model).name

    async def health(_: Request) -> Response:
        ready = engine.context_length is not None
        return JSONResponse({"status": "ok" if ready else "loading"}, status_code=200 if ready else 503)

    async def metrics(_: Request) -> Response:
        return PlainTextResponse(engine.counters.text(running=len(engine.queues)))

    async def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": name, "object": "model", "owned_by": "llmopt"}]})

    async def complete(request: Request) -> Response:
        accepted_s = time.monotonic()
        try:
            body = parsed(await request.body())
            chat = request.url.path.endswith("/chat/completions")
            job = Job(body, texts, engine, chat=chat, model=name, accepted_s=accepted_s)
        except BadRequest as error:
            return JSONResponse({"error": {"message": str(error), "type": error.kind}}, status_code=error.status)
        if job.stream:
            return StreamingResponse(job.events(), media_type="text/event-stream")
        try:
            return JSONResponse(await job.whole())
        except RuntimeError as error:
            return JSONResponse({"error": {"message": str(error), "type": "server_error"}}, status_code=500)

    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        engine.listen()
        yield

    routes = [
        Route("/health", health),
        Route("/metrics", metrics),
        Route("/v1/models", models),
        Route("/v1/completions", complete, methods=["POST"]),
        Route("/v1/chat/completions", complete, methods=["POST"]),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


def parsed(text: bytes) -> dict[str, Any]:
    """The body of a request. Raises BadRequest."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is no JSON: {error}") from None
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object")
    return body


def told(body: dict[str, Any], name: str, kind: type, words: str) -> Any:
    """A field of the body, ``None`` where it is absent or null. Raises BadRequest where it is of another type."""
    value = body.get(name)
    if value is not None and type(value) is not kind:
        raise BadRequest(f"{name} must be {words}")
    return value


# What others know and this server does not do, with the values that ask for nothing.
NOT_DONE: dict[str, tuple[Any, ...]] = {
    "logprobs": (False,), "top_logprobs": (0,), "echo": (False,), "best_of": (1,), "suffix": ("",), "frequency_penalty": (0,),
    "presence_penalty": (0,), "repetition_penalty": (1,), "logit_bias": ({},), "response_format": ({"type": "text"},),
    "tools": ([],), "functions": ([],),
}  # fmt: skip


def require_done(body: dict[str, Any]) -> None:
    """Raise BadRequest for a field that would be answered as if it were not there."""
    for name, nothing in NOT_DONE.items():
        value = body.get(name)
        # 0 log-probabilities are one a token: only false asks for none.
        if value is not None and not any(value == empty and type(value) in (type(empty), float) for empty in nothing):
            raise BadRequest(f"this server does not do {name}: leave it out")
    fewest = told(body, "min_tokens", int, "a whole number")
    if fewest and body.get("ignore_eos") is not True:
        raise BadRequest("this server does not do min_tokens without ignore_eos: leave it out")


def joined_text(message: dict[str, Any]) -> dict[str, Any]:
    """A message with its parts of text as one. Raises BadRequest for a part that is no text."""
    parts = message.get("content")
    if not isinstance(parts, list):
        return message
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise BadRequest("this server reads parts of text alone in a content")
    return message | {"content": "".join(text for text in texts if text)}


class Job:
    """One request: checked in the constructor, then streamed or collected."""

    def __init__(
        self, body: dict[str, Any], texts: Texts, engine: Engine, *, chat: bool, model: str, accepted_s: float
    ) -> None:
        asked = told(body, "model", str, "a text")
        if asked not in (None, model):
            raise NoSuchModel(f"there is no model {asked!r} here: this server has {model!r}")
        if body.get("temperature") not in (None, 0) or body.get("top_p") not in (None, 1):
            raise BadRequest("this server decodes greedily: temperature must be 0 and top_p 1")
        if body.get("stop") not in (None, "", []) or body.get("n") not in (None, 1):
            raise BadRequest("this server takes no stop strings, and n must be 1")
        require_done(body)
        self.texts, self.engine, self.chat, self.model = texts, engine, chat, model
        self.ids = texts.prompt(body)
        self.times = Times(prompt_tokens=len(self.ids), accepted_s=accepted_s)
        limits = [told(body, name, int, "a whole number") for name in ("max_completion_tokens", "max_tokens")]
        self.max_tokens: int = next((given for given in limits if given is not None), DEFAULT_MAX_TOKENS)
        if self.max_tokens < 1:
            raise BadRequest("max_tokens must be 1 or more")
        limit = engine.context_length or 0
        if len(self.ids) + self.max_tokens > limit:
            raise BadRequest(
                f"{len(self.ids)} prompt + {self.max_tokens} output tokens do not fit the context of {limit}"
            )
        self.end_ids = [] if told(body, "ignore_eos", bool, "true or false") else texts.end_ids
        self.stream = bool(told(body, "stream", bool, "true or false"))
        options = told(body, "stream_options", dict, "an object") or {}
        self.usage_at_end = bool(options.get("include_usage"))
        self.usage_always = bool(options.get("continuous_usage_stats"))

    def usage(self, tokens: int, cached: int) -> dict[str, Any]:
        counts = {"prompt_tokens": len(self.ids), "completion_tokens": tokens, "total_tokens": len(self.ids) + tokens}
        return counts | {"prompt_tokens_details": {"cached_tokens": cached}}

    def envelope(self, choices: list[dict[str, Any]], *, chunk: bool) -> dict[str, Any]:
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if self.chat else "text_completion"
        return {"id": "cmpl", "object": kind, "created": int(time.time()), "model": self.model, "choices": choices}

    def choice(self, text: str, finish: str | None, *, chunk: bool) -> dict[str, Any]:
        if not self.chat:
            return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}
        part = {"role": "assistant", "content": text}
        return {"index": 0, "delta" if chunk else "message": part, "finish_reason": finish}

    def finish_reason(self, tokens: list[int]) -> str:
        return "stop" if tokens and tokens[-1] in self.end_ids else "length"

    async def events(self) -> AsyncIterator[bytes]:
        from tokenizers.decoders import DecodeStream

        decoder, seen, tokens, cached = DecodeStream(skip_special_tokens=True), 0, list[int](), 0
        try:
            async for news in self.engine.generate(self.ids, self.max_tokens, self.end_ids, self.times):
                tokens, cached = news.tokens, news.cached
                for place in range(seen, len(tokens)):
                    text = decoder.step(self.texts.tokenizer, tokens[place]) or ""
                    event = self.envelope([self.choice(text, None, chunk=True)], chunk=True)
                    if self.usage_always:
                        event["usage"] = self.usage(place + 1, cached)
                    yield sse(event)
                seen = len(tokens)
        except RuntimeError as error:
            yield sse({"error": {"message": str(error), "type": "server_error"}})
            return
        yield sse(self.envelope([self.choice("", self.finish_reason(tokens), chunk=True)], chunk=True))
        if self.usage_at_end:
            yield sse(self.envelope([], chunk=True) | {"usage": self.usage(len(tokens), cached)})
        yield b"data: [DONE]\n\n"

    async def whole(self) -> dict[str, Any]:
        tokens, cached = list[int](), 0
        async for news in self.engine.generate(self.ids, self.max_tokens, self.end_ids, self.times):
            tokens, cached = news.tokens, news.cached
        text = self.texts.tokenizer.decode(tokens)
        choice = self.choice(text, self.finish_reason(tokens), chunk=False)
        return self.envelope([choice], chunk=False) | {"usage": self.usage(len(tokens), cached)}


def sse(event: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"


def main() -> None:
    import uvicorn

    arguments = parse_arguments()
    uvicorn.run(
        application(arguments),
        host=arguments.host,
        port=arguments.port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=1,  # streams that run on are cut: who stops a server means it
    )


if __name__ == "__main__":
    main()
