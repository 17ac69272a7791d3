"""How a container is asked whether its engine answers: a real completion of one token, with what the image has to ask with.

For the start alone: vLLM answers ``/health`` long before it could complete anything, and a quantization that its kernels do
not take dies at the first request (0.32).  Afterwards the cheap path is asked (``Engine.health_path``): a completion under
full load would queue behind users' and take a healthy replica out.
"""

from __future__ import annotations

import json

from llmopt.deploy.plan import ENGINE_PORT, Engine

# No proxy of the environment: the address is the container's own.
ASK = (
    "import json,sys,urllib.request as u;"
    "r=u.Request(sys.argv[1],sys.argv[2].encode(),{'Content-Type':'application/json'});"
    "o=u.build_opener(u.ProxyHandler({}));"
    "sys.exit(not json.load(o.open(r,timeout=float(sys.argv[3])))['choices'])"
)
# The answer of a cheap path is an error from 400 on, which urllib raises.
LOOK = (
    "import sys,urllib.request as u;"
    "u.build_opener(u.ProxyHandler({})).open(sys.argv[1],timeout=float(sys.argv[2])).read()"
)


def health_words(engine: Engine, *, timeout_s: float, port: int = ENGINE_PORT, host: str = "127.0.0.1") -> list[str]:
    """A command that ends well when the engine's cheap path answers in time."""
    url, limit = f"http://{host}:{port}{engine.health_path}", f"{timeout_s:g}"
    if engine.image is not None and engine.image.probe == "curl":
        return ["curl", "--silent", "--fail", "--noproxy", "*", "--max-time", limit, "--output", "/dev/null", url]
    return ["python3", "-c", LOOK, url, limit]


def completion_words(
    engine: Engine, *, timeout_s: float, port: int = ENGINE_PORT, host: str = "127.0.0.1"
) -> list[str]:
    """A command that ends well when one token came back in time; it needs nothing but ``engine.image.probe``."""
    url = f"http://{host}:{port}/v1/completions"
    body = json.dumps({"model": engine.model, "prompt": "Hello", "max_tokens": 1, "temperature": 0})
    limit = f"{timeout_s:g}"
    if engine.image is not None and engine.image.probe == "curl":
        quiet = ["curl", "--silent", "--show-error", "--fail", "--noproxy", "*", "--max-time", limit]
        return [*quiet, "--output", "/dev/null", "--header", "Content-Type: application/json", "--data", body, url]
    return ["python3", "-c", ASK, url, body, limit]
