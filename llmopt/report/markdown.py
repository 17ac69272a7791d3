"""A ranking as Markdown, for a pull request or a wiki."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmopt.core.escaping import markdown_text
from llmopt.report.ranking import curves, more_lines, relaxation_lines, row_lines
from llmopt.report.table import columns, footnotes, goal_line, label, title

HEADING = "# Recommendation"


def ranking_markdown(document: dict[str, Any]) -> str:
    lines = [HEADING, "", markdown_text(title(document)), "", f"Goal: {markdown_text(goal_line(document))}.", ""]
    if document["ranked"]:
        shown = columns(document["ranked"])
        lines.append("| " + " | ".join(c.title for c in shown) + " |")
        lines.append("|" + "|".join("---:" if c.right else "---" for c in shown) + "|")
        lines += ["| " + " | ".join(markdown_text(c.cell(row)) for c in shown) + " |" for row in document["ranked"]]
        lines += ["", "## Why", ""]
        for row in document["ranked"]:
            lines += [f"{row['rank']}. **{markdown_text(label(row))}**", *bullets(row_lines(row), "   - ")]
    for name, table in curves(document):
        lines += ["", f"## Load curve of {markdown_text(name)}", "", *pipes(table)]
    if document["rejected"]:
        lines += ["", "## Rejected", ""]
        for row in document["rejected"]:
            lines += [f"- **{markdown_text(label(row))}**", *bullets(row_lines(row), "  - ")]
    if relaxed := relaxation_lines(document):
        lines += ["", "## What must give", "", *bullets(relaxed, "- ")]
    return (
        "\n".join([*lines, "", *(f"{markdown_text(note)}  " for note in (*more_lines(document), *footnotes(document)))])
        + "\n"
    )


def bullets(lines: Sequence[str], mark: str) -> list[str]:
    return [mark + markdown_text(line) for line in lines]


def pipes(lines: Sequence[Sequence[str]]) -> list[str]:
    head, *rows = lines
    rule = ["---", *["---:"] * (len(head) - 2), "---"]
    return [f"| {' | '.join(map(markdown_text, line))} |" for line in (head, rule, *rows)]
