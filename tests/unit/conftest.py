"""The scripted server as a real process, for whoever measures something."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmopt.bench.target import Target
from llmopt.core.domain import ServeOptions
from llmopt.core.environments import current
from llmopt.serve import backend
from llmopt.serve.process import DIRECT, serving
from unit.make import artifact


class Scripted:
    """Starts scripted servers and stops them all at the end."""

    def __init__(self, folder, stack):
        self.folder, self.stack = folder, stack
        self.artifact = artifact(folder / "artifact")

    def serve(self, *arguments, slots=64, **options):
        """A ``with`` block's server that was told ``arguments``."""
        chosen = ServeOptions(backend="scripted", max_num_seqs=slots, extra_args=arguments)
        return serving(backend("scripted"), self.artifact, chosen, current(), log=self.folder / "log", **options)

    def __call__(self, *arguments, slots=64):
        """A target that lives until the test ends."""
        server = self.stack.enter_context(self.serve(*arguments, slots=slots))
        return Target(
            base_url=server.command.base_url,
            model="scripted",
            pid=server.pid,
            load_s=server.load_s,
            usage_per_chunk=True,
        )


@pytest.fixture
def scripted(tmp_path):
    import contextlib

    with contextlib.ExitStack() as stack:
        yield Scripted(tmp_path / "scripted", stack)


@pytest.fixture
def truth():
    """What a scripted server really did, by its own stamps."""

    def ask(target):
        with DIRECT.open(target.base_url.removesuffix("/v1") + "/scripted/log", timeout=10) as response:
            return json.load(response)

    return ask


@pytest.fixture(scope="session")
def demo_tokenizer():
    from llmopt import demo
    from llmopt.bench.prompts import load_tokenizer

    if not Path(demo.MODEL / "tokenizer.json").exists():
        pytest.skip("the demo model is not built")
    return load_tokenizer(demo.MODEL)
