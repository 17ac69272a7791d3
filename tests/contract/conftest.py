"""Every quantization of the table, made once per test session from the bundled model by the real libraries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llmopt import demo, serve
from llmopt.core import environments
from llmopt.core.artifacts import open_model, unquantized
from llmopt.core.domain import Artifact, ServeOptions
from llmopt.core.environments import Environment
from llmopt.core.errors import MissingEnvironment
from llmopt.pipeline import making, proving, requesting
from llmopt.report.progress import Reporter
from llmopt.serve import Backend
from llmopt.serve.process import RunningServer, serving

PROOF_TOKENS = 4096
SAMPLES = 8
# What each engine that can be had here is asked to load; those that are only described have a page of their own.
STARTED = {"hf": "nf4-dq", "llamacpp": "gguf-q4_k_m", "vllm": "gptq-int4-g128", "scripted": "bf16"}


class Workshop:
    """Makes an artifact the first time it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = open_model(demo.MODEL)

    def request(self, name: str) -> requesting.QuantizeRequest:
        """``name`` may carry a layout: ``gptq-int4-g128:gptq``."""
        quant, _, layout = name.partition(":")
        request = requesting.quantize_request(
            self.model, quant, requesting.Options(layout=layout or None, samples=SAMPLES)
        )
        if "iterations" in request.settings:  # a tenth of them shows that each layout is written and read
            return replace(request, settings=request.settings | {"iterations": 5})
        return request

    def make(self, name: str) -> tuple[Artifact, bool]:
        proof = proving.QualityText(tokens=PROOF_TOKENS)
        return making.quantize(
            self.request(name), self.folder / name.replace(":", "-"), Reporter(quiet=True), proof=proof
        )

    def artifact(self, name: str) -> Artifact:
        return unquantized(self.model) if name == "bf16" else self.make(name)[0]


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("artifacts"))


def environment_of(backend: Backend) -> Environment:
    """Where the engine lives here; the test is skipped where it does not."""
    try:
        return environments.find(backend.needs)
    except MissingEnvironment as error:
        pytest.skip(f"{backend.name} is not here: {error.hint}")


@pytest.fixture(scope="package")
def started(
    request: pytest.FixtureRequest, workshop: Workshop, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """One real server of the engine that the page asks for, for all tests of all pages that only ask it something.

    Of the package: one of the session would be there until its end, for tests that look for what was left behind to find.
    """
    backend = serve.backend(request.param)
    extra = ("--prompt-tokens", "48") if backend.name == "scripted" else ()
    eager = True if backend.name == "vllm" else None  # starts in a third of the time
    options = ServeOptions(
        backend=backend.name, max_num_seqs=4, max_model_len=512, enforce_eager=eager, extra_args=extra
    )
    log = tmp_path_factory.mktemp("logs") / "server.log"
    with serving(
        backend, workshop.artifact(STARTED[backend.name]), options, environment_of(backend), log=log
    ) as server:
        yield server
