"""A gate's document for people and for CI: terminal, Markdown (step summaries, comments), JUnit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any
from xml.etree import ElementTree

from rich.console import Console

from llmopt.core.escaping import markdown_text, visible
from llmopt.core.units import show
from llmopt.report.terminal import plain_table, print_lines, say, stdout_console

HEADING = "# llmopt gate"
JUNIT_NAME = "llmopt gate"
XML = "<?xml version='1.0' encoding='utf-8'?>\n"  # not ElementTree's own, which names the encoding of the locale
JUNIT_HEAD = f'{XML}<testsuites name="{JUNIT_NAME}"'
STYLES = {"pass": "bold green", "regression": "bold red", "inconclusive": "bold yellow"}
MARKS = {"pass": "✓", "regression": "✗", "inconclusive": "?"}
HEADER = ("metric", "base", "candidate", "change", "interval", "tolerated", "blocks from", "status")


def print_gate(document: dict[str, Any], console: Console | None = None) -> None:
    console = console or stdout_console()
    say(console, document["words"], style=STYLES[document["status"]], soft_wrap=True)
    for case in document["cases"]:
        say(console, case_line(case), style="bold", soft_wrap=True)
        if case["metrics"] or case["quality"]:
            console.print(plain_table([HEADER, *rows(case)]))
        print_lines(list(remarks(case)), console)


def case_line(case: dict[str, Any]) -> str:
    blocks = f"{case['blocks']} of at most {case['planned_blocks']} blocks, {case['seconds']:.0f} s"
    how = blocks if case["paired"] else "stored runs, not paired"
    return f"{case['base']} → {case['candidate']} ({how})"


def rows(case: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for m in case["metrics"]:
        yield (
            m["name"], show(m["base"], m["unit"]), show(m["candidate"], m["unit"]), f"{m['change']:+.1%}",
            f"[{m['low']:+.1%}, {m['high']:+.1%}]", f"{m['tolerate']:.1%}", f"{m['block']:.1%}", m["status"],
        )  # fmt: skip
    for q in case["quality"]:
        yield (
            q["name"], f"{q['base']:.4g}", f"{q['candidate']:.4g}", f"{q['worse']:+.4f}",
            f"[{q['low']:+.4f}, {q['high']:+.4f}]", f"{q['tolerate']:g}", f"{q['block']:g}", q["status"],
        )  # fmt: skip


def remarks(case: dict[str, Any]) -> Iterator[str]:
    for row in case["counts"]:
        if row["outcome"] != "pass":
            yield f"{row['name']}: {row['words']} ({row['outcome']})"
    yield from case["causes"]
    for one in case["differences"]:
        allowed = ", allowed" if one["allowed"] else ""
        yield f"{one['name']} differs{allowed}: {one['base']} → {one['candidate']}"
    yield from case["notes"]


def markdown(document: dict[str, Any]) -> str:
    """For a step summary, or the one comment of a pull request."""
    lines = [HEADING, "", f"**{MARKS[document['status']]} {markdown_text(document['words'])}**", ""]
    for case in document["cases"]:
        lines += [f"## {markdown_text(case['base'])} → {markdown_text(case['candidate'])}", ""]
        table = list(rows(case))
        if table:
            lines += [
                table_line(HEADER),
                table_line(["---"] * len(HEADER)),
                *(table_line([markdown_text(c) for c in row]) for row in table),
                "",
            ]
        lines += [f"- {markdown_text(text)}" for text in remarks(case)]
        lines += [
            "",
            f"{markdown_text(case_line(case))}; confidence {confidence(document)}, seed {case['seed']}.",
            "",
        ]
    return "\n".join(lines)


def confidence(document: dict[str, Any]) -> str:
    """Its digits count: 99.99 % is not 100 %."""
    return f"{100 * document['confidence']:.10g} %"


def table_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def junit(document: dict[str, Any]) -> str:
    """One suite a case: its verdict, then every row that is gated.

    A regression fails; what is inconclusive fails too, and is skipped where the gate ends with status 0 all the same.
    """
    document = visible(document)  # XML has no word for a control character
    suites = ElementTree.Element("testsuites", name=JUNIT_NAME)
    for case in document["cases"]:
        checks = list(junit_checks(case))
        suite = ElementTree.SubElement(
            suites, "testsuite", name=f"{case['base']} → {case['candidate']}", tests=str(len(checks))
        )
        kinds = Counter({"failure": 0, "skipped": 0})
        for name, status, message in checks:
            test = ElementTree.SubElement(suite, "testcase", name=name, classname="llmopt.gate")
            if status in ("regression", "inconclusive"):
                passes = status == "inconclusive" and document["exit_status"] == 0
                kind = "skipped" if passes else "failure"
                kinds[kind] += 1
                ElementTree.SubElement(test, kind, message=message)
        suite.set("failures", str(kinds["failure"]))
        suite.set("skipped", str(kinds["skipped"]))
        suite.set("time", str(case["seconds"]))
    ElementTree.indent(suites)
    return XML + ElementTree.tostring(suites, encoding="unicode") + "\n"


def junit_checks(case: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Name, status and message; the verdict first, which may have a reason that no row has: another version, too few blocks."""
    yield "verdict", case["status"], f"{case['status']}: {case['words']}"
    for row in (*case["metrics"], *case["quality"], *case["counts"]):
        status = row.get("status") or row["outcome"]
        change = f"{row['base']} → {row['candidate']}"
        yield row["name"], status, change if status == "regression" else status


def print_noise(document: dict[str, Any], console: Console | None = None) -> None:
    console = console or stdout_console()
    for case in document["cases"]:
        say(
            console,
            f"{case['label']}: one against itself, {case['block_s']:.1f} s a block",
            style="bold",
            soft_wrap=True,
        )
        lines = [("metric", "a block's difference", "between starts", "between runs", "")]
        for n in case["noise"]:
            session, run = ("–" if one is None else f"{one:.2%}" for one in (n["session"], n["run"]))
            lines.append(
                (
                    n["metric"],
                    f"{n['block']:.2%}",
                    session,
                    run,
                    f"{n['blocks']} blocks, {n['sessions']} starts",
                )
            )
        console.print(plain_table(lines))
        say(console, f"kept in {case['file']}", style="dim", soft_wrap=True)


def print_plan(document: dict[str, Any], console: Console | None = None) -> None:
    console = console or stdout_console()
    for case in document["cases"]:
        say(
            console,
            f"{case['label']}: {case['block_s']:.1f} s a block, calibrated {case['measured_at'][:10]}",
            style="bold",
            soft_wrap=True,
        )
        lines = [("metric", "tolerated", "blocks from", "true loss", "noise of a block", "blocks", "minutes", "")]
        for row in case["thresholds"]:
            found = row["blocks"] is not None
            lines.append((
                row["metric"], f"{row['tolerate']:.1%}", f"{row['block']:.1%}", f"{row['loss']:.1%}", f"{row['noise']:.2%}",
                str(row["blocks"]) if found else "–", f"{row['minutes']:g}" if found else "–",
                "" if found else "no number of blocks finds it in four of five gates: a loss nearer to what blocks than noise",
            ))  # fmt: skip
        console.print(plain_table(lines))


def print_baselines(rows: Sequence[dict[str, Any]], console: Console | None = None) -> None:
    console = console or stdout_console()
    lines = [("name", "cases", "runs", "age, days", "machine")]
    for row in rows:
        if row["reason"]:
            lines.append((row["name"], "–", "–", "–", "cannot be read"))
            continue
        where = "this one" if row["here"] else ", ".join(row["machines"])
        lines.append((row["name"], str(row["cases"]), str(row["runs"]), f"{row['age_days']:g}", where))
    console.print(plain_table(lines)) if rows else say(console, "no baselines: llmopt baseline set NAME RUNS")
    for row in rows:
        if row["reason"]:
            say(console, f"{row['name']}: {row['reason']}", soft_wrap=True)


def print_baseline(document: dict[str, Any], console: Console | None = None) -> None:
    console = console or stdout_console()
    old = ", old: accept it anew" if document["old"] else ""
    say(console, f"{document['name']}: {document['runs']} runs, {document['age_days']:g} days{old}", style="bold")
    names = list(dict.fromkeys(name for row in document["rows"] for name in row["metrics"]))
    lines = [("case", *names, "engine")]
    for row in document["rows"]:
        shown = [row["metrics"].get(name, {}).get("shown", "–") for name in names]
        lines.append(
            (f"{row['artifact']} ({row['runs']} runs)", *shown, f"{row['engine']} {row['version'] or ''}".strip())
        )
    console.print(plain_table(lines))
