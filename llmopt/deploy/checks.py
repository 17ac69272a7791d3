"""What can be proved of a written folder before it is handed over: by the real programs, where they are.

Every check has a name and one of three ends; one that could not be made says what is missing, and is never silent.  Nothing is
written into the folder, and nothing is left running.
"""

from __future__ import annotations

import importlib.util
import json
import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from llmopt.core.escaping import one_line
from llmopt.deploy.nginx import KEY_LINE

LIMIT_S = 30.0
PREVIOUS = "previous"  # the folder of the deployment before this one
# `server NAME:PORT` of an upstream, the files of a certificate and that of the keys: none is here where the gateway runs elsewhere.
UPSTREAM = re.compile(r"^(\s*server )([\w.-]*[a-zA-Z][\w.-]*)(:\d+ )", re.MULTILINE)
CERTIFICATE = re.compile(r"^(\s*ssl_certificate(?:_key)? )([^;]+);", re.MULTILINE)
KEYS = re.compile(r"^(\s*include )[^;]+;$", re.MULTILINE)
URL_FILE_SINCE = (0, 26)
# Two rules that make the same series are an error to it, and its end a good one unless it is told otherwise (2.42).
CHECK_RULES = ("promtool", "check", "rules", "--lint-fatal")
BESIDE_PATH = "/usr/sbin:/sbin"  # where Debian has nginx, and not everybody looks; run.sh does as well
VARIABLE = re.compile(r"\$\$|\$\{\w+(?::-(?P<default>[^}]*)|:\?[^}]*)?\}")


@dataclass(frozen=True, kw_only=True)
class Check:
    """``why``: what a skipped one lacked, what a failed one said; of a passed one what it was checked with."""

    name: str
    status: Literal["passed", "failed", "skipped"]
    why: str


Checks = Iterator[Check]


def check(folder: Path, target: str) -> list[Check]:
    """Everything in ``folder`` that somebody here can judge. ``target``: as in ``deploy.TARGETS``."""
    found: list[Check] = []
    for pattern, checker in BY_NAME.items():
        for path in here(folder, pattern):
            found += checker(folder, path)
    return found + list(of_target(folder, target))


def here(folder: Path, pattern: str) -> list[Path]:
    paths = (p for p in folder.rglob(pattern) if p.is_file() and not p.is_symlink())
    return sorted(p for p in paths if p.relative_to(folder).parts[0] != PREVIOUS)


def of_target(folder: Path, target: str) -> Checks:
    """Checks of one target alone, from a module of its own."""
    name = f"llmopt.deploy.checks_{target}"
    if importlib.util.find_spec(name) is not None:
        yield from importlib.import_module(name).check(folder)


def nginx(folder: Path, path: Path) -> Checks:
    """``nginx -t`` with loopback addresses for names that exist in the deployment alone, a certificate and a key made for it."""
    name = f"nginx -t {path.relative_to(folder)}"
    if (program := shutil.which("nginx") or shutil.which("nginx", path=BESIDE_PATH)) is None:
        yield skipped(name, "nginx is not here (Debian: nginx-light)")
        return
    with tempfile.TemporaryDirectory(prefix="llmopt-nginx-") as scratch:
        keys = Path(scratch) / "keys.conf"
        keys.write_text(KEY_LINE.replace("THE-KEY", secrets.token_hex(32)) + "\n", encoding="utf-8")
        text = UPSTREAM.sub(r"\g<1>127.0.0.1\g<3>", path.read_text(encoding="utf-8"))
        text = KEYS.sub(lambda match: f"{match[1]}{keys};", text)
        if CERTIFICATE.search(text):
            if not shutil.which("openssl"):
                yield skipped(name, "openssl, which would make a certificate to try it with, is not here")
                return
            text = with_certificate(text, Path(scratch))
        config = Path(scratch) / "nginx.conf"
        config.write_text(text, encoding="utf-8")
        end, told = run([program, "-e", "stderr", "-p", scratch, "-t", "-c", str(config)])
    if end and "syntax is ok" in told and "bind()" in told:
        yield Check(name=name, status="passed", why=f"syntax alone: its port is not for this user ({last(told)})")
    else:
        yield ended(name, end, told.replace(f"{scratch}/", ""))


def with_certificate(text: str, scratch: Path) -> str:
    """The same with a self-signed certificate of a day, in ``scratch``."""
    key, chain = scratch / "tls.key", scratch / "tls.crt"
    run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(chain)])  # fmt: skip
    return CERTIFICATE.sub(lambda m: f"{m[1]}{key if '_key ' in m[1] else chain};", text)


def prometheus_config(folder: Path, path: Path) -> Checks:
    """The syntax alone: rule files stand where the deployment has them, and are checked by themselves."""
    yield by_program(
        f"promtool check config {path.relative_to(folder)}",
        ["promtool", "check", "config", "--syntax-only", path.name],
        folder=path.parent,
    )


def prometheus_rules(folder: Path, path: Path) -> Checks:
    yield by_program(f"promtool check rules {path.relative_to(folder)}", [*CHECK_RULES, path.name], folder=path.parent)


def dashboard(folder: Path, path: Path) -> Checks:
    """Every query is one that Prometheus would take: promtool reads them as the expressions of recording rules."""
    name = f"queries of {path.relative_to(folder)}"
    try:
        panels = json.loads(path.read_text(encoding="utf-8"))["panels"]
        queries = [target["expr"] for panel in panels for target in panel["targets"]]
    except (ValueError, KeyError, TypeError) as error:
        yield Check(name=name, status="failed", why=f"no dashboard: {error!r}")
        return
    # Marks of Grafana alone are none of PromQL's.
    rules = [{"record": f"query:number_{n}", "expr": q} for n, q in enumerate(queries)]
    with tempfile.TemporaryDirectory(prefix="llmopt-queries-") as scratch:
        file = Path(scratch) / "queries.yml"
        file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}), encoding="utf-8")
        yield by_program(name, [*CHECK_RULES, file.name], folder=scratch)


def alertmanager(folder: Path, path: Path) -> Checks:
    """``amtool check-config``; one older than 0.26 does not know ``url_file`` and is given an address in its place."""
    name = f"amtool check-config {path.relative_to(folder)}"
    if not shutil.which("amtool"):
        yield skipped(name, "amtool is not here (Debian: prometheus-alertmanager)")
        return
    version = re.search(r"version (\d+)\.(\d+)", run(["amtool", "--version"])[1])
    old = version is not None and (int(version[1]), int(version[2])) < URL_FILE_SINCE
    with tempfile.TemporaryDirectory(prefix="llmopt-alertmanager-") as scratch:
        file = Path(scratch) / "alertmanager.yml"
        text = path.read_text(encoding="utf-8")
        file.write_text(re.sub(r"url_file: .*", "url: http://127.0.0.1:9/", text) if old else text, encoding="utf-8")
        end, told = run(["amtool", "check-config", file.name], folder=scratch)
    note = (
        f"with an address for url_file, which amtool {version[1]}.{version[2]} does not know" if old and version else ""
    )
    yield ended(name, end, told, note=note)


def compose(folder: Path, path: Path) -> Checks:
    """Against the compose specification; and that each file it mounts from this folder is in it."""
    name = f"compose specification: {path.relative_to(folder)}"
    text = path.read_text(encoding="utf-8")
    if importlib.util.find_spec("compose_spec") is None:
        yield skipped(name, "the package compose-spec is not here (pip install compose-spec)")
    else:
        from compose_spec import PyCompose

        try:
            PyCompose.from_json(json.dumps(interpolated(yaml.safe_load(text)))).to_spec()
            yield Check(name=name, status="passed", why="compose-spec")
        except Exception as error:  # its own kinds, and those of the two libraries below it
            yield Check(name=name, status="failed", why=last(str(error)))
    missing = [source for source in own_sources(yaml.safe_load(text)) if not (folder / source).exists()]
    name = f"files that {path.relative_to(folder)} mounts and builds"
    if missing:
        yield Check(name=name, status="failed", why=f"not there: {', '.join(missing)}")
    else:
        yield Check(name=name, status="passed", why="all there")


def interpolated(value: Any) -> Any:
    """As compose does before it looks at anything: defaults for variables, a path for those that must be set, ``$`` for ``$$``."""
    if isinstance(value, dict):
        return {key: interpolated(part) for key, part in value.items()}
    if isinstance(value, list):
        return [interpolated(part) for part in value]
    if not isinstance(value, str):
        return value
    return VARIABLE.sub(lambda m: "$" if m[0] == "$$" else m["default"] if m["default"] is not None else "/set", value)


def own_sources(document: dict[str, Any]) -> list[str]:
    """Paths below the folder; ``deployment.json`` is written last, with the end of these very checks in it."""
    services = document["services"].values()
    mounted = [m["source"] for s in services for m in s.get("volumes", ()) if m["type"] == "bind"]
    built = [s["build"]["context"] for s in services if "build" in s]
    return sorted({p.replace("$$", "$") for p in [*mounted, *built] if p.startswith("./")} - {"./deployment.json"})


def script(folder: Path, path: Path) -> Checks:
    with path.open(encoding="utf-8") as file:
        shell = "bash" if "bash" in file.readline() else "sh"
    yield by_program(f"{shell} -n {path.relative_to(folder)}", [shell, "-n", path.name], folder=path.parent)


BY_NAME: dict[str, Callable[[Path, Path], Checks]] = {
    "nginx.conf": nginx,
    "prometheus.yml": prometheus_config,
    "rules.yml": prometheus_rules,
    "llmopt.json": dashboard,
    "alertmanager.yml": alertmanager,
    "compose.yaml": compose,
    "*.sh": script,
}
PACKAGES = {"promtool": "prometheus", "amtool": "prometheus-alertmanager"}


def by_program(name: str, words: Sequence[str], *, folder: Path | str) -> Check:
    if not shutil.which(words[0]):
        package = f" (Debian: {PACKAGES[words[0]]})" if words[0] in PACKAGES else ""
        return skipped(name, f"{words[0]} is not here{package}")
    return ended(name, *run(words, folder=folder))


def run(words: Sequence[str], *, folder: Path | str | None = None) -> tuple[int, str]:
    """Exit status and what was said; a program that does not end is a failure."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S, errors="replace", cwd=folder)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, done.stdout + done.stderr


def ended(name: str, end: int, told: str, *, note: str = "") -> Check:
    return Check(name=name, status="failed" if end else "passed", why=note if not end and note else last(told))


def skipped(name: str, why: str) -> Check:
    return Check(name=name, status="skipped", why=why)


def last(told: str) -> str:
    """The last line that says something, of a failure the one that names it."""
    lines = [one_line(line).strip() for line in told.splitlines() if line.strip()]
    named = [line for line in lines if re.search(r"emerg|error|FAILED|rror:", line)]
    return (named or lines or [""])[-1][:500]
