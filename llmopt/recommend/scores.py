"""The scores of the tasks that an artifact was given: each by its name, with its direction, and the one that ranks.

lm-eval gives a task several figures (``acc`` and ``perplexity`` of lambada, ``exact_match`` under two filters of gsm8k).  A
task with one is named as it is; of others each is ``TASK/METRIC``, with ``/FILTER`` where that does not tell them apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

# What ranks a task that has several figures, the first that it has; most tasks of lm-eval 0.4 have one of these.
PRIMARY = ("acc_norm", "acc", "exact_match", "pass@1", "f1", "mcc", "em")
# Of records that do not say which way is better.
LOWER_IS_BETTER = (
    "perplexity",
    "word_perplexity",
    "byte_perplexity",
    "bits_per_byte",
    "brier_score",
    "ter",
    "mse",
    "loss",
)


class Score(NamedTuple):
    """``higher_is_better`` is ``None`` where nobody says; ``primary``: whether configurations are ranked by it."""

    value: float | None
    stderr: float | None = None
    higher_is_better: bool | None = None
    primary: bool = False


UNKNOWN = Score(None)


def scores_of(rows: Sequence[dict[str, Any]]) -> dict[str, Score]:
    """By name, of the rows that the quality of a record holds."""
    found: dict[str, Score] = {}
    for task in dict.fromkeys(str(row["task"]) for row in rows):
        own = [row for row in rows if str(row["task"]) == task]
        counts = Counter(str(row.get("metric")) for row in own)
        first = next((m for m in PRIMARY if m in counts), str(own[0].get("metric")) if len(own) == 1 else None)
        for row in own:
            metric = str(row.get("metric"))
            parts = [
                task,
                *([metric] if len(own) > 1 else []),
                *([str(row.get("filter"))] if counts[metric] > 1 else []),
            ]
            better = direction(row)
            primary = (
                metric == first
                and better is not None
                and not any(s.primary for name, s in found.items() if name.startswith(f"{task}/"))
            )
            found["/".join(parts)] = Score(row.get("value"), row.get("stderr"), better, primary)
    return found


def direction(row: dict[str, Any]) -> bool | None:
    said, metric = row.get("higher_is_better"), str(row.get("metric"))
    if isinstance(said, bool):
        return said
    return True if metric in PRIMARY else False if metric in LOWER_IS_BETTER else None
