"""A place to make environments in, with a fake installer instead of the network."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path

import pytest

from llmopt.core import blueprints, environments, installation, llamacpp_source, provision

FAKE = Path(__file__).with_name("fake_installer.py")


class FakeInstaller:
    """What the fake pip is told to do, and what it was asked for."""

    def __init__(self, folder):
        self.folder, self.bin, self.locks = folder / "fake-pip", folder / "bin", folder / "locks"
        for made in (self.folder, self.bin, self.locks):
            made.mkdir()
        self.said = []

    def order(self, what):
        (self.folder / what).touch()

    def take_back(self, what):
        (self.folder / what).unlink()

    def calls(self):
        """The arguments of each pip since the last time this was asked, options left out."""
        file = self.folder / "calls.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return [[a for a in json.loads(line) if not a.startswith("-")] for line in lines]

    def program(self, name, text="#!/bin/sh\nexit 0\n"):
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def lock(self, name, text):
        (self.locks / f"{name}-{blueprints.platform_tag()}.txt").write_text(text)

    def create(self, name, **options):
        return environments.create(name, report=self.said.append, **options)


def source_archive(path):
    """A tiny llama-cpp-python, and its sha256."""
    with tarfile.open(path, "w:gz") as tar:
        for name in ("convert_hf_to_gguf.py", "gguf-py/gguf/__init__.py", "conversion/base.py", "README.md"):
            member = tarfile.TarInfo(f"llama_cpp_python-0.3.36/vendor/llama.cpp/{name}")
            tar.addfile(member, io.BytesIO())
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def installer(tmp_path, monkeypatch):
    fake = FakeInstaller(tmp_path)
    monkeypatch.setenv("LLMOPT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FAKE_PIP", str(fake.folder))
    monkeypatch.setenv("PATH", str(fake.bin))
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(installation, "VENV", (sys.executable, str(FAKE)))
    monkeypatch.setattr(blueprints, "LOCKS", fake.locks)
    monkeypatch.setattr(provision, "gpu_names", lambda: ())
    monkeypatch.setattr(llamacpp_source, "LLAMA_CPP_SHA256", source_archive(fake.folder / "source.tar.gz"))
    return fake
