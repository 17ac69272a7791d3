"""A deployment for people: its README.md, and what ``llmopt deploy`` prints; both out of ``deployment.json``'s document."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console

from llmopt.core.escaping import markdown_text, one_line
from llmopt.core.metrics import METRICS, parse_metric
from llmopt.core.run_record import QUALITY
from llmopt.core.units import show
from llmopt.report.table import hardware_words, workload_line
from llmopt.report.terminal import print_lines, say, stdout_console

WITHOUT_LOAD = ("load_s", *QUALITY)
# What a file of the folder is for, by its name or the folder that it is in.
PURPOSES = {
    "README.md": "this page",
    "rollback.sh": "puts the former configuration back (previous/)",
    "verify.sh": "measures what runs, and holds it to the figures above",
    "completion.json": "what an engine is asked, to see that it is ready",
    "wait-ready.sh": "waits until an engine completes that",
    "run.sh": "starts everything on this machine, and stops it",
    "install.sh": "installs the services; --dry-run says what it would do",
    "compose.yaml": "the stack, for docker compose",
    "nginx.conf": "the gateway: least connections, retries on the next replica, streams unbuffered",
    "litellm.yaml": "the LiteLLM gateway: time limits, fallbacks, cache",
    "prometheus.yml": "what is scraped",
    "rules.yml": "recording rules and alerts; burn rates of the SLOs above",
    "alertmanager.yml": "who is told",
    ".env.example": "secrets and settings of your place: copy it to .env",
    "Dockerfile": "what the engine's image is built from",
    "canary": "what the canary's image is built from",
    "components": "what not every cluster has; each says in its kustomization.yaml what it needs",
    "fill-model.sh": "puts the model into the cluster's volume, and compares checksums",
    "serve_config.yaml": "the application, for Ray Serve",
    "app.py": "a replica: the measured engine as a child process",
    "requirements.txt": "what a replica's environment needs",
    "keeper.py": "ends the engine with all its processes when its replica ends",
    "segments.py": "of keeper.py",
    "units": "units of systemd",
    "chart": "the same as a Helm chart",
    "manifests": "plain manifests with a kustomization",
    "litellm": "what LiteLLM's image is built from",
    "grafana": "data source and dashboard",
    "grafana/llmopt.json": "the dashboard, for a Grafana of yours",
}
# Target → what a replica has there that the measured command had otherwise.
HERE = {
    "compose": "in its container it listens on every address, and the model lies at `/model`",
    "kubernetes": "in its container it listens on every address, and the model lies at `/model`",
    "systemd": "each replica has a port of its own, which ends the name of its service",
    "shell": "each replica has a port of its own, which `run.sh` names",
    "rayserve": "Ray Serve gives each replica its options and an address of its own",
}


def readme(document: Mapping[str, Any], paths: Sequence[str]) -> str:
    """The page of a deployment. ``paths``: the files that lie beside it."""
    parts = (
        heading(document),
        why(document),
        figures(document),
        capacity(document),
        use(document),
        proof(document),
        doubts(document),
        files(paths),
    )
    return "\n".join(line for part in parts for line in part).rstrip("\n") + "\n"


def heading(document: Mapping[str, Any]) -> Iterator[str]:
    engine = document["engine"]
    yield f"# {markdown_text(document['name'])}: {markdown_text(document['label'])}"
    yield ""
    if document["forced"]:
        yield "> **Deployed with --force, against its evidence:**"
        yield from (f"> {markdown_text(reason)}  " for reason in document["forced"])
        yield ""
    version = f" {engine['version']}" if engine["version"] else " (version unknown)"
    yield f"{markdown_text(engine['title'] + version)} serves `{code(engine['model'])}` by {plural(document['capacity']['replicas'], 'replica')}"
    yield f"at {code_span(document['url'])}. Written by llmopt {document['llmopt_version']} for {markdown_text(document['targets'][0])}."
    yield ""


def why(document: Mapping[str, Any]) -> Iterator[str]:
    yield "## What is deployed, and why"
    yield ""
    runs = plural(document["runs"], "run")
    place = f"rank {document['rank']}" if document["rank"] else "not ranked"
    machine = hardware_words({"logical_cores": None, "gpus": [], "cpu": "unknown hardware", **document["machine"]})
    yield (
        f"From {code_span(document['source'])}, {place}: {document['evidence']} in {runs} on {markdown_text(machine)},"
        f" at {markdown_text(document['load'])} ({markdown_text(workload_line(document['workload']))}); verdict {document['verdict']}."
    )
    yield ""
    # Doubts have a part of their own.
    yield from (f"- {markdown_text(reason)}" for reason in document["reasons"] if not reason.startswith("doubt: "))
    if document["ties"]:
        yield f"- it ties with {markdown_text(', '.join(document['ties']))}: the measurements do not tell them apart"
    yield ""
    yield f"The command that was measured; {HERE[document['targets'][0]]}:"
    yield ""
    engine = document["engine"]
    words = [f"{name}={shlex.quote(value)}" for name, value in engine["environment"].items()]
    yield from code_block(" ".join([*words, shlex.join(engine["argv"])]))


def figures(document: Mapping[str, Any]) -> Iterator[str]:
    yield "## Figures"
    yield ""
    yield "| figure | value | 95 % interval | evidence |"
    yield "|---|---:|---|---|"
    at = f" at {markdown_text(document['load'])}"
    for name, figure in document["figures"].items():
        value, where = amount(name, figure["value"]), "" if name in WITHOUT_LOAD else at
        yield f"| {name} | {value} | {interval(name, figure)} | {figure['evidence']}{where} |"
    if (limit := document["memory_limit_bytes"]) is not None:
        peak = show(document["peak_memory_bytes"], "bytes")
        yield f"| memory limit of a replica | {show(limit, 'bytes')} |  | a quarter and 256 MiB above the measured peak of {peak} |"
    yield ""
    if document["slos"]:
        yield f"SLOs, {'which alerts burn against and' if document['wishes']['monitoring'] else 'which'} `verify` judges by:"
        yield ""
        yield from (f"- {slo_words(slo)}" for slo in document["slos"])
        yield ""
    if quality := document["quality"]:
        yield f"Quality against its base: {quality_words(quality)}."
        yield ""


def slo_words(slo: Mapping[str, Any]) -> str:
    unit = METRICS[slo["metric"]].unit
    measured = "not measured" if slo["measured"] is None else f"measured {show(slo['measured'], unit)}"
    ours = "; nobody gave one: it is twice what was measured" if slo["chosen_by_us"] else ""
    share = f"{slo['share']:.0%} of requests within {show(slo['bound'], unit)}"
    return f"**{markdown_text(slo['text'])}**: {share} ({measured}{ours}{markdown_text(implied_words(slo))})"


def implied_words(slo: Mapping[str, Any]) -> str:
    """One percentile has one SLO, the tightest: the others follow from it."""
    return f"; {' and '.join(slo['implies'])} asked for as well, and kept with it" if slo.get("implies") else ""


def quality_words(quality: Mapping[str, Any]) -> str:
    parts = [("KL divergence", "kl_mean", "kl"), ("unchanged top tokens", "top1_agreement", "top1")]
    known = [f"{words} {amount(metric, quality[key])}" for words, key, metric in parts if quality.get(key) is not None]
    return ", ".join(known) + " (measured)" if known else "not measured"


def capacity(document: Mapping[str, Any]) -> Iterator[str]:
    yield "## Capacity and cost"
    yield ""
    yield from (f"- {markdown_text(words)}" for words in document["capacity"]["words"])
    yield ""


def use(document: Mapping[str, Any]) -> Iterator[str]:
    yield "## Start, check, go back"
    yield ""
    before, after = (
        [f"{shlex.join(step['command'])}    # {one_line(step['why'])}" for step in document.get(part, ())]
        for part in ("before", "after")
    )
    yield from code_block(
        *before,
        f"{shlex.join(document['start'])}    # start it",
        *after,
        "./verify.sh    # measure it: exit status 0 it keeps what is promised above, 3 it does not, 4 cannot be told",
        "./rollback.sh  # put the former configuration back, then start anew",
    )
    if words := replaces_words(document):
        yield markdown_text(words) + ":"
        yield ""
        yield from code_block(document["replaces"]["stop"])
    place = document["secrets"]
    yield f"Values that are secrets, or of your place alone, belong into {place if ' ' in place else code_span(place)},"
    yield "which llmopt neither writes nor reads. Files that you"
    yield "edit here are never overwritten: `llmopt deploy` shows the difference and stops."
    yield ""


def replaces_words(document: Mapping[str, Any]) -> str | None:
    """Of another stack that this folder held; the command that stops it follows."""
    if not (former := document.get("replaces")):
        return None
    return f"before this one the folder held {former['name']} for {former['target']}, which goes on beside it until it is stopped"


def proof(document: Mapping[str, Any]) -> Iterator[str]:
    yield "## What was checked"
    yield ""
    yield f"- {markdown_text(boot_words(document['boot']))}"
    yield from (f"- {markdown_text(line)}" for line in check_lines(document["checks"]))
    yield ""


def boot_words(boot: Mapping[str, Any]) -> str:
    if boot.get("status") == "booted":
        return (
            f"booted here in {boot['seconds']:g} s: the measured command started, answered a completion and was stopped"
        )
    return f"not booted here: {boot.get('why', 'not tried')}"


def check_lines(checks: Sequence[Mapping[str, Any]]) -> list[str]:
    words = {"passed": "passed", "failed": "FAILED", "skipped": "not checked"}
    return [
        f"{c['name']}: {words.get(c['status'], c['status'])}{': ' + c['why'] if c.get('why') else ''}" for c in checks
    ]


def doubts(document: Mapping[str, Any]) -> Iterator[str]:
    if document["doubts"]:
        yield "## Doubts"
        yield ""
        yield from (f"- {markdown_text(doubt)}" for doubt in document["doubts"])
        yield ""


def files(paths: Sequence[str]) -> Iterator[str]:
    yield "## Files"
    yield ""
    for path in paths:
        name = path.rpartition("/")[2]
        purpose = PURPOSES.get(path) or PURPOSES.get(path.partition("/")[0]) or PURPOSES.get(name, "")
        yield f"- `{path}`{': ' + purpose if purpose else ''}"
    yield "- `deployment.json`: all of this for programs, and the sha256 of every file"


# --- on the terminal -------------------------------------------------------------------------------------------------


def print_deployment(document: Mapping[str, Any], console: Console | None = None) -> None:
    console = console or stdout_console()
    folder, status = document["folder"], document["status"]
    heads = {
        "unchanged": f"{folder}: unchanged",
        "dry-run": f"{folder}: would be written",
        "written": f"{folder}: written",
    }
    say(console, f"{heads[status]} ({len(document['files'])} files for {document['targets'][0]})", style="bold")
    say(console, f"{document['label']}, {plural(document['capacity']['replicas'], 'replica')}, at {document['url']}")
    print_lines(document["capacity"]["words"], console)
    print_lines([f"{slo['text']}{implied_words(slo)}" for slo in document["slos"] if implied_words(slo)], console)
    if document["forced"]:
        print_lines([f"against its evidence: {reason}" for reason in document["forced"]], console)
    print_lines([boot_words(document["boot"]), *check_lines(document["checks"])], console)
    print_lines([f"doubt: {doubt}" for doubt in document["doubts"]], console)
    if status == "dry-run":
        print_lines([f"{path} ({size:,} bytes)" for path, size in document["files"].items()], console)
    else:
        if words := replaces_words(document):
            say(console, f"{words}: {document['replaces']['stop']}", soft_wrap=True)
        say(console, f"start: cd {shlex.quote(str(folder))} && {shlex.join(document['start'])}", soft_wrap=True)


# --- words ------------------------------------------------------------------------------------------------------------


def amount(name: str, value: float | None) -> str:
    metric, _ = parse_metric(name)
    return show(value, metric.unit)


def interval(name: str, figure: Mapping[str, Any]) -> str:
    if figure["low"] is None or figure["high"] is None:
        return "–"
    return f"{amount(name, figure['low'])} – {amount(name, figure['high'])}"


def plural(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def code(text: str) -> str:
    """Inside one pair of backticks: none of its own, and one line."""
    return one_line(text).replace("`", "'")


def code_span(text: str) -> str:
    return f"`{code(text)}`"


def code_block(*lines: str) -> Iterator[str]:
    """A fenced block whose fence nothing in it ends."""
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    yield f"{fence}sh"
    yield from (line for text in lines for line in text.splitlines() or [""])
    yield fence
    yield ""
