"""A ranking as Markdown, for a pull request or a wiki."""

from __future__ import annotations

from typing import Any

from llmopt.report.table import columns, footnotes, goal_line, label, title

HEADING = "# Recommendation"


def ranking_markdown(document: dict[str, Any]) -> str:
    lines = [HEADING, "", title(document), "", f"Goal: {goal_line(document)}.", ""]
    if document["ranked"]:
        shown = columns(document["ranked"])
        lines.append("| " + " | ".join(c.title for c in shown) + " |")
        lines.append("|" + "|".join("---:" if c.right else "---" for c in shown) + "|")
        lines += ["| " + " | ".join(c.cell(row) for c in shown) + " |" for row in document["ranked"]]
        lines += ["", "## Why", ""]
        for row in document["ranked"]:
            lines += [f"{row['rank']}. **{label(row)}**", *(f"   - {reason}" for reason in row["reasons"])]
    if document["rejected"]:
        lines += ["", "## Rejected", ""]
        for row in document["rejected"]:
            lines += [f"- **{label(row)}**", *(f"  - {reason}" for reason in row["because"])]
    return "\n".join([*lines, "", *(f"{note}  " for note in footnotes(document))]) + "\n"
