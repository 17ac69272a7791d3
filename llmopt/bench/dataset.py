"""Prompts from real conversations, and recorded traffic: JSONL, ShareGPT's form, a data set of the ``datasets`` library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmopt.bench.prompts import Prompt
from llmopt.core.errors import UsageError
from llmopt.core.rows import ROWS_HINT, json_rows, rows

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ASKERS = ("human", "user")
MOST_ROWS = 100_000


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """One line of a recorded trace: when, and either the prompt itself or its length."""

    offset_s: float
    prompt: str | None
    input_tokens: int | None
    output_tokens: int | None


def load_prompts(name: str, tokenizer: Tokenizer | None) -> list[Prompt]:
    """The first question of each row with the length of its answer, where a tokenizer can tell. Raises UsageError."""
    found = []
    for row in rows(name):
        question, answer, tokens = question_of(row)
        if question:
            found.append((question, answer, tokens))
        if len(found) == MOST_ROWS:
            break
    if not found:
        raise UsageError(f"no prompt in {name}", hint=ROWS_HINT)
    if tokenizer is None:
        return [Prompt(text=q, tokens=None, answer_tokens=n) for q, _, n in found]
    questions = tokenizer.encode_batch([q for q, _, _ in found])
    answers = tokenizer.encode_batch([a or "" for _, a, _ in found], add_special_tokens=False)
    return [
        Prompt(text=q, tokens=len(ids.ids), answer_tokens=n or (len(reply.ids) if a else None) or None)
        for (q, a, n), ids, reply in zip(found, questions, answers, strict=True)
    ]


def question_of(row: Any) -> tuple[str | None, str | None, int | None]:
    """(first question, its answer, wanted length of the answer) of one row of whichever form."""
    if isinstance(row, str):
        return row, None, None
    if not isinstance(row, dict):
        return None, None, None
    tokens = row.get("output_tokens") or row.get("max_tokens")
    turns = row.get("conversations") or row.get("conversation") or row.get("messages")
    if isinstance(turns, list):
        said = [
            (t.get("from") or t.get("role"), t.get("value") or t.get("content")) for t in turns if isinstance(t, dict)
        ]
        for (who, question), (_, answer) in zip(said, [*said[1:], (None, None)], strict=False):
            if who in ASKERS and isinstance(question, str):
                return question, answer if isinstance(answer, str) else None, whole(tokens)
        return None, None, None
    question = next((row[k] for k in ("prompt", "text", "question", "instruction", "input") if row.get(k)), None)
    answer = next((row[k] for k in ("completion", "response", "answer", "output") if row.get(k)), None)
    return (
        question if isinstance(question, str) else None,
        answer if isinstance(answer, str) else None,
        whole(tokens),
    )


def whole(value: Any) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def load_arrivals(path: Path) -> list[Arrival]:
    """A recorded trace: ``arrival_s`` (or Mooncake's ``timestamp`` in ms), ``prompt`` or ``input_tokens``, ``output_tokens``.

    Mooncake's names ``input_length`` and ``output_length`` are taken too.  Raises UsageError that names the line.
    """
    hint = '{"arrival_s": 0.25, "input_tokens": 128, "output_tokens": 64} a line; "prompt" in place of input_tokens'
    if not path.is_file():
        raise UsageError(f"no trace at {path}", hint=hint)
    found = []
    for number, row in enumerate(json_rows(path), 1):
        try:
            at = float(row["arrival_s"]) if "arrival_s" in row else float(row["timestamp"]) / 1e3
            arrival = Arrival(
                offset_s=at,
                prompt=row.get("prompt"),
                input_tokens=whole(row.get("input_tokens") or row.get("input_length")),
                output_tokens=whole(row.get("output_tokens") or row.get("output_length")),
            )
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise UsageError(f"{path}, line {number}: no arrival time", hint=hint) from error
        if not isinstance(arrival.prompt, str | None):
            raise UsageError(f"{path}, line {number}: the prompt is no text", hint=hint)
        if not 0 <= at < 1e9 or (arrival.prompt is None and arrival.input_tokens is None):
            raise UsageError(
                f"{path}, line {number}: neither a prompt nor input_tokens, or a time out of range", hint=hint
            )
        found.append(arrival)
    if not found:
        raise UsageError(f"the trace {path} is empty", hint=hint)
    first = min(a.offset_s for a in found)
    return sorted(
        (Arrival(offset_s=a.offset_s - first, prompt=a.prompt, input_tokens=a.input_tokens, output_tokens=a.output_tokens)
         for a in found),
        key=lambda a: a.offset_s,
    )  # fmt: skip


def draw(prompts: Sequence[Prompt], count: int, seed: str) -> list[Prompt]:
    """``count`` of them in an order drawn from the seed; all are used once before one is used twice."""
    import random

    generator, found = random.Random(seed), list[Prompt]()
    while len(found) < count:
        found += generator.sample(list(prompts), len(prompts))
    return found[:count]
