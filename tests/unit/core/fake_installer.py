"""A pip, and a venv, of our own making: they put metadata where real ones put packages, and need no network.

As a script it is the fake of ``python -m venv``: it makes a folder whose ``python -m pip`` is this file again.
What the fake pip is told goes to ``calls.jsonl`` in FAKE_PIP; a file ``fail-WORD`` there makes the first command
that names WORD fail, ``hang-WORD`` makes it sleep for a minute after half of its work.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path


def main():
    if Path(__file__).name == "__main__.py":
        pip(sys.argv[1:])
    else:
        venv(Path(sys.argv[1]))


def venv(folder):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    fake = next(folder.glob("lib/python3*/site-packages")) / "pip"
    fake.mkdir()
    shutil.copy(__file__, fake / "__main__.py")


def pip(arguments):
    orders = Path(os.environ["FAKE_PIP"])
    with (orders / "calls.jsonl").open("a") as file:
        file.write(json.dumps(arguments) + "\n")
    packages = Path(__file__).parents[1]
    words = [a for a in arguments if not a.startswith("-")]
    if "download" in arguments:
        shutil.copy(orders / "source.tar.gz", arguments[arguments.index("-d") + 1])
        return
    for word in words:
        if (orders / f"fail-{word}").exists():
            sys.exit(f"ERROR: could not get {word}")
    for word in words[1:]:
        if match := re.match(r"([\w.-]+)(?:\[.*\])?==([\w.]+)$", word):
            if (orders / f"hang-{word}").exists():
                (orders / "hanging").write_text(str(os.getpid()))
                metadata(packages, *match.groups())  # metadata without a list of files: what a cut installation leaves
                time.sleep(60)
            (metadata(packages, *match.groups()) / "RECORD").write_text("")
        elif "uninstall" in arguments:
            for old in packages.glob(f"{word}-*.dist-info"):
                shutil.rmtree(old)


def metadata(packages, name, version):
    stem = name.replace("-", "_")
    for old in packages.glob(f"{stem}-*.dist-info"):
        shutil.rmtree(old)
    folder = packages / f"{stem}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (folder / "INSTALLER").write_text("pip\n")
    return folder


if __name__ == "__main__":
    main()
