"""What ``llmopt import`` made of files, in a few lines a run."""

from __future__ import annotations

from typing import Any

from llmopt.core.escaping import one_line


def print_imported(document: dict[str, Any]) -> None:
    for run in document["runs"]:
        for line in lines_of(run):
            print(one_line(line))
    new = sum(not run["already_there"] for run in document["runs"])
    print(f"{new} new of {len(document['runs'])} runs in {one_line(document['results'])}")


def lines_of(run: dict[str, Any]) -> list[str]:
    head = f"{run['run_id']}  {run['label']}, {run['workload']}, by {run['tool']} ({run['started_at'][:16]})"
    if run["already_there"]:
        return [f"{head}: already there"]
    lines = [head, f"  as ours: {', '.join(name.removesuffix('_s') for name in run['metrics']) or 'nothing'}"]
    lines += [f"  unlike, kept as its own: {words}" for words in run["unlike"]]
    return lines + [f"  {run['verdict']['status']}: {reason['message']}" for reason in run["verdict"]["reasons"]]
