"""``llmopt doctor`` as a picture: what is here, what is missing, and what can be done now."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmopt.core.units import show
from llmopt.report.terminal import stdout_console

HERE, NOT_HERE, CANNOT = ("✓", "green"), ("✗", "red"), ("–", "dim")
NAME_WIDTH = 15


def print_doctor(rows: dict[str, Any], console: Console | None = None) -> None:
    console = console or stdout_console()
    section(console, "machine", machine_lines(rows))
    section(console, "engines", [engine_line(row) for row in rows["engines"]])
    section(console, "quantizers", [quantizer_line(row) for row in rows["quantizers"]])
    section(console, "environments", [environment_line(row) for row in rows["environments"]])
    section(console, "tools", tool_lines(rows["tools"]))
    doubts = [(("!", "yellow"), row["name"], row["doubt"]) for row in rows["engines"] if row["doubt"]]
    bad = [
        (("!", "yellow"), Path(r["environment"]).name, f"{r['found']}: {r['problem']}\n→ {r['remedy']}")
        for r in rows["bad_pairs"]
    ]
    if doubts or bad:
        section(console, "doubts", [*bad, *doubts])
    section(console, "right now", now_lines(rows))


def section(console: Console, title: str, lines: list[tuple[tuple[str, str], str, str]]) -> None:
    """Lines of (mark, name, words); words that do not fit go on under their column."""
    console.print(Text(title, style="bold"))
    table = Table.grid(padding=(0, 1), pad_edge=True)
    table.add_column()
    table.add_column(width=NAME_WIDTH, no_wrap=True)
    table.add_column(overflow="fold")
    for (mark, style), name, words in lines:
        table.add_row(Text(mark, style=style), Text(name), Text(words))
    console.print(table)


def machine_lines(rows: dict[str, Any]) -> list[tuple[tuple[str, str], str, str]]:
    machine, plain = rows["machine"], (" ", "")
    features = " ".join(machine["cpu_features"]) or "no vector instructions named"
    free = show(machine["memory_available_bytes"], "bytes")
    return [
        (plain, "processor", f"{machine['cpu']}, {machine['logical_cores']} cores: {features}"),
        (plain, "memory", f"{show(machine['memory_bytes'], 'bytes')}, {free} available"),
        *[(plain, "gpu", words) for words in gpu_words(machine["gpu"])],
        (plain, "python", f"{rows['python_version']}, {short(rows['python'])}"),
        (plain, "compiler", rows["c_compiler"] or "none (only gptqmodel and llamacpp --build need one)"),
        docker_line(rows["docker"], rows["docker_problem"]),
    ]


def docker_line(program: str | None, problem: str | None) -> tuple[tuple[str, str], str, str]:
    if program is None:
        return (" ", ""), "docker", "none (only serve --container needs it)"
    return (NOT_HERE, "docker", f"{program}: {problem}") if problem else ((" ", ""), "docker", program)


def gpu_words(gpu: dict[str, Any]) -> list[str]:
    if gpu["kind"] == "rocm":
        return ["AMD's driver is here"]
    if not gpu["found"]:
        return ["none that a driver shows"]
    driver = f"driver {gpu['driver']}, CUDA {gpu['cuda']}"
    return [
        f"{one['name']}, {show(one['memory_bytes'], 'bytes')}, {show(one['free_bytes'], 'bytes')} free,"
        f" {'compute ' + one['compute_capability'] + ', ' if one['compute_capability'] else ''}{driver}"
        for one in gpu["found"]
    ]


def engine_line(row: dict[str, Any]) -> tuple[tuple[str, str], str, str]:
    if row["available"] and row["runs_here"]:
        return HERE, row["name"], f"{row['title']} {row['version'] or ''}   {short(row['environment'])}"
    if not row["runs_here"]:
        installed = f"{row['version'] or 'installed'} in {short(row['environment'])}, but " if row["available"] else ""
        return CANNOT, row["name"], f"{row['title']}: {installed}needs {row['needs_device']}"
    return NOT_HERE, row["name"], f"{row['title']}: {row['hint']}{container_words(row)}"


def container_words(row: dict[str, Any]) -> str:
    if not row["container"]:
        return ""
    # Of an engine without a package the hint says it already.
    return f" ({row['image']})" if "--container" in row["hint"] else f"; or llmopt serve --container, in {row['image']}"


def quantizer_line(row: dict[str, Any]) -> tuple[tuple[str, str], str, str]:
    makes = listed(row["makes"])
    if row["available"]:
        return HERE, row["name"], f"{row['version'] or ''}   {short(row['environment'])}: {makes}"
    return NOT_HERE, row["name"], f"{makes}: {row['hint']}"


def environment_line(row: dict[str, Any]) -> tuple[tuple[str, str], str, str]:
    if row["state"] == "ready":
        return HERE, row["name"], row["purpose"]
    mark = CANNOT if row["state"] == "absent" else NOT_HERE
    return mark, row["name"], f"{row['state']}: llmopt env create {row['name']}   ({row['purpose']})"


def tool_lines(tools: list[dict[str, Any]]) -> list[tuple[tuple[str, str], str, str]]:
    """Programs of one version in one folder on one line."""
    together: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in tools:
        if row["path"]:
            together[row["version"] or "version unknown", str(Path(row["path"]).parent)].append(row["name"])
    lines = [
        (HERE, "llama.cpp", f"{', '.join(names)}: {version}\n{short(folder)}")
        for (version, folder), names in together.items()
    ]
    if lacking := [row["name"] for row in tools if not row["path"]]:
        lines.append((NOT_HERE, "llama.cpp", f"{', '.join(lacking)}: llmopt env create llamacpp --build"))
    return lines


def now_lines(rows: dict[str, Any]) -> list[tuple[tuple[str, str], str, str]]:
    serve, quantize = rows["now"]["serve"], rows["now"]["quantize"]
    found = [(HERE if serve else NOT_HERE, "serve", ", ".join(serve) or "nothing yet: llmopt env create local")]
    found.append(
        (HERE if quantize else NOT_HERE, "quantize", listed(quantize) or "nothing yet: llmopt env create local")
    )
    found.append((HERE, "bench", "any server that speaks OpenAI's API: llmopt bench --url URL --model NAME"))
    if serve and quantize:
        found.append((HERE, "try", "llmopt demo"))
    return found


def listed(names: list[str]) -> str:
    """Names, with those of llama.cpp as a number: there are thirty of them."""
    gguf = [name for name in names if name.startswith("gguf-")]
    others = [name for name in names if name not in gguf]
    return ", ".join([*others, *([f"{len(gguf)} gguf types"] if gguf else [])])


def short(path: str) -> str:
    """A path below the home folder begins with ``~``."""
    home = str(Path.home())
    return "~" + path[len(home) :] if path.startswith(home + "/") else path
