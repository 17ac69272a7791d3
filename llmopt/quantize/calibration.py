"""Calibration: from a text, JSONL, a conversation or a data set to token ids, the same for every library, and its doubts.

Ids are made here and not by the quantizers: transformers' ``AutoTokenizer`` may replace the pre-tokenizer of a
``tokenizer.json``, and libraries drop, pad or repeat samples silently.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmopt import demo
from llmopt.core.errors import ModelError, UsageError
from llmopt.core.files import read_text
from llmopt.core.kv_cache import positions
from llmopt.core.rows import ROWS_HINT, rows
from llmopt.core.weights import read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BUILTIN = "builtin"
FEW_SAMPLES, FEW_TOKENS = 8, 2048
# How much farther the calibration may lie from the evaluation text than the evaluation text's own halves do from each
# other. Of one kind of text both are alike; tests/unit/quantize/test_calibration.py holds prose against code above it.
FAR_RATIO = 1.3
COMPARED_TOKENS = 16_384
VALIDATION_WINDOWS, VALIDATION_TOKENS = 32, 4096  # at least, of both, where the text has them
ROLES = {"human": "user", "gpt": "assistant"}

Row = str | list[dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What a quantizer is calibrated on: ``input_ids`` of shape (samples, ≤ ``length``), facts and doubts about it."""

    source: str
    sha256: str
    length: int
    seed: int
    asked: int
    input_ids: list[list[int]]
    rows: int
    cut_tokens: int
    templated: bool
    text: str
    validation: str
    doubts: list[str] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(map(len, self.input_ids))

    def content(self) -> dict[str, Any]:
        """What a quantizer reads: the ids, and their text for programs that tokenise for themselves."""
        return {"input_ids": self.input_ids, "text": self.text}

    def facts(self) -> dict[str, Any]:
        """For the manifest and the card: everything but the ids, of which the hash is kept."""
        return {
            "source": self.source,
            "text_sha256": self.sha256,
            "ids_sha256": hashlib.sha256(json.dumps(self.input_ids).encode()).hexdigest(),
            "samples": len(self.input_ids),
            "samples_asked": self.asked,
            "sample_tokens": self.length,
            "tokens": self.tokens,
            "rows": self.rows,
            "cut_tokens": self.cut_tokens,
            "chat_template": self.templated,
            "seed": self.seed,
            "doubts": self.doubts,
        }


def prepare(
    source: str,
    model: Path,
    *,
    count: int,
    length: int,
    seed: int,
    evaluation: Path | None = None,
    validate: bool = False,
) -> Samples:
    """``count`` samples of ``length`` tokens at seeded places of ``source``, with doubts against the evaluation text.

    ``validate``: a choice will be made on ``validation``, so where nothing is left for it a fifth of the samples is.

    One text is cut into windows.  Rows (JSONL, data sets) are shuffled whole and packed: a sample begins where a row
    begins, and what does not fit is cut and counted.  Raises UsageError for what is no text, ModelError for the tokenizer.
    """
    found, sha256, left_out = read_rows(source)
    tokenizer = tokenizer_of(model)
    render, templated = chat_renderer(model)
    plain = [row for row in found if isinstance(row, str) and row.strip()]
    said = [text for row in found if not isinstance(row, str) and (text := render(row)).strip()]
    templated = templated and bool(said)
    # A chat template writes the special tokens itself.
    ids = [e.ids for e in tokenizer.encode_batch(plain)]
    ids += [e.ids for e in tokenizer.encode_batch(said, add_special_tokens=not templated)]
    total = sum(map(len, ids))
    if not total:
        raise UsageError(f"the calibration {source} is empty", hint="give a text, JSONL, or --calibration builtin")
    length = min(length, max(total, 1))
    generator = random.Random(seed)
    windows, cut = windows_of(ids[0], length, generator) if len(ids) == 1 else packed(ids, length, generator)
    spare = max(VALIDATION_WINDOWS, -(-VALIDATION_TOKENS // length))
    chosen, rest = windows[:count], windows[count : count + spare]
    if validate and not rest and len(chosen) > 4:  # a choice must not be made on what was calibrated on
        chosen, rest = chosen[: -(len(chosen) // 5)], chosen[-(len(chosen) // 5) :]
    doubts = doubts_of(source, chosen, count, length, cut, total)
    if said and not templated:
        doubts.append("conversations are joined as plain text: the model has no chat template")
    if left_out:
        doubts.append(f"{left_out} rows of {source} hold no text and are left out: {ROWS_HINT}")
    if (context := context_of(model)) is not None and length > context:
        doubts.append(f"samples of {length} tokens are longer than the model's context of {context}")
    if evaluation is not None:
        doubts += distance_doubts(tokenizer, chosen, evaluation)
    return Samples(
        source=source, sha256=sha256, length=length, seed=seed, asked=count, input_ids=chosen, rows=len(ids),
        cut_tokens=cut, templated=templated, doubts=doubts,
        text="\n".join(tokenizer.decode_batch(chosen, skip_special_tokens=False)),
        validation="\n".join(tokenizer.decode_batch(rest, skip_special_tokens=False)),
    )  # fmt: skip


def read_rows(source: str) -> tuple[list[Row], str, int]:
    """The rows of a source, the sha256 of their content, and how many rows held no text. Raises UsageError."""
    path = demo.CALIBRATION_TEXT if source == BUILTIN else Path(source).expanduser()
    if path.is_file() and path.suffix not in (".jsonl", ".json"):
        text = read_text(path)
        if "\x00" in text:
            raise UsageError(f"{path} is binary, not text", hint="give a text file, JSONL, or --calibration builtin")
        found: list[Row] = [text]
        left_out = 0
    else:
        every = [row_of(raw) for raw in rows(source)]
        found = [row for row in every if row]
        left_out = len(every) - len(found)
        if not found:
            raise UsageError(f"no text in {source}", hint=ROWS_HINT)
    content = found[0] if isinstance(found[0], str) and len(found) == 1 else json.dumps(found)
    return found, hashlib.sha256(str(content).encode()).hexdigest(), left_out


def row_of(raw: Any) -> Row | None:
    """A row of whichever form as text, or as messages with role and content; ``None`` when it holds neither."""
    if isinstance(raw, str):
        return raw
    if not isinstance(raw, dict):
        return None
    turns = raw.get("messages") or raw.get("conversations") or raw.get("conversation")
    if isinstance(turns, list):
        said = [message for turn in turns if (message := message_of(turn)) is not None]
        return said if len(said) == len(turns) else None  # a conversation with a gap is none
    question = next((raw[k] for k in ("text", "prompt", "question", "instruction", "input") if raw.get(k)), None)
    answer = next((raw[k] for k in ("completion", "response", "answer", "output") if raw.get(k)), None)
    if not isinstance(question, str):
        return None
    if not isinstance(answer, str):
        return question
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def message_of(turn: Any) -> dict[str, str] | None:
    """Role and content of one turn; ``None`` when one of them is missing."""
    if not isinstance(turn, dict):
        return None
    role = turn.get("role") or turn.get("from")
    content = text_of(turn["content"] if "content" in turn else turn.get("value"))
    return (
        {"role": ROLES.get(role, role), "content": content} if isinstance(role, str) and content is not None else None
    )


def text_of(content: Any) -> str | None:
    """What a message says; of content in parts the text alone. ``None`` for what is neither."""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        return "".join(part for part in parts if isinstance(part, str)) or None
    return content if isinstance(content, str) else None


def context_of(model: Path) -> int | None:
    return positions(read_json(model / "config.json"))


def chat_renderer(model: Path) -> tuple[Callable[[Row], str], bool]:
    """Turns messages into text by the model's own chat template, or joins them, and whether there is a template."""
    template, config = chat_template(model)
    if template is None:
        return (lambda row: "\n\n".join(m["content"] for m in row if isinstance(m, dict))), False
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> str:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    environment.globals["raise_exception"] = refuse
    tokens = {name: special(config.get(name)) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    try:
        compiled = environment.from_string(template)
    except TemplateError as error:
        raise ModelError(
            f"the chat template of {model} cannot be read: {error}", hint="fetch or copy it again"
        ) from error

    def render(row: Row) -> str:
        try:
            return str(compiled.render(messages=row, add_generation_prompt=False, **tokens))
        except Exception as error:  # besides TemplateError whatever its expressions raise
            raise UsageError(
                f"the chat template of {model} refuses a row of the calibration: {error}",
                hint="roles must alternate as the template wants; or give plain text",
            ) from error

    return render, True


def chat_template(model: Path) -> tuple[str | None, dict[str, Any]]:
    """The model's chat template, ``None`` without one, and its tokenizer_config."""
    try:
        config = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = {}
    file = model / "chat_template.jinja"
    found = read_text(file) if file.exists() else config.get("chat_template")
    if isinstance(found, list):
        found = next((t.get("template") for t in found if t.get("name") == "default"), None)
    return (found if isinstance(found, str) else None), config


def special(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


def tokenizer_of(model: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(model / "tokenizer.json"))
    except Exception as error:  # the library raises a bare Exception
        raise ModelError(
            f"{model / 'tokenizer.json'} is no tokenizer: {error}", hint="fetch or copy it again"
        ) from error


def windows_of(ids: Sequence[int], length: int, generator: random.Random) -> tuple[list[list[int]], int]:
    """Disjoint windows of one text in seeded order; nothing counts as cut but the tail."""
    starts = list(range(0, len(ids) - length + 1, length))
    generator.shuffle(starts)
    return [list(ids[start : start + length]) for start in starts], 0


def packed(rows: Sequence[Sequence[int]], length: int, generator: random.Random) -> tuple[list[list[int]], int]:
    """Rows in seeded order, joined until a sample is full; tokens beyond it are cut, a last sample may be shorter."""
    order = [row for row in rows if row]
    generator.shuffle(order)
    samples: list[list[int]] = []
    cut, current = 0, list[int]()
    for row in order:
        room = length - len(current)
        current = current + list(row[:room])
        cut += max(0, len(row) - room)
        if len(current) == length:
            samples.append(current)
            current = []
    return ([*samples, current] if current else samples), cut


def doubts_of(source: str, chosen: Sequence[Sequence[int]], asked: int, length: int, cut: int, total: int) -> list[str]:
    doubts = []
    tokens = sum(map(len, chosen))
    if len(chosen) < asked:
        doubts.append(f"{source} gives {len(chosen)} samples of {length} tokens, {asked} were asked for")
    if len(chosen) < FEW_SAMPLES or tokens < FEW_TOKENS:
        doubts.append(f"calibrated on {tokens:,} tokens only: give a longer text")
    if cut > 0.25 * total:
        doubts.append(
            f"{cut / total:.0%} of the calibration's tokens are cut off: raise --sample-tokens above {length}"
        )
    return doubts


def distance_doubts(tokenizer: Tokenizer, chosen: Sequence[Sequence[int]], evaluation: Path) -> list[str]:
    """Is the text that the proof reads another world than the one that was calibrated on?

    Distances of token distributions grow as samples shrink, so pieces of one size are compared, and the yardstick is how
    far two pieces of the evaluation text lie from each other.
    """
    theirs = tokenizer.encode(read_text(evaluation)).ids
    ours = [token for sample in chosen for token in sample]
    size = min(len(ours), len(theirs) // 2, COMPARED_TOKENS)
    if size < FEW_TOKENS:
        return []
    first, second = theirs[:size], Counter(theirs[size : 2 * size])
    own, distance = token_distance(Counter(first), second), token_distance(Counter(ours[:size]), second)
    if distance <= FAR_RATIO * own:
        return []
    known = set(ours)
    unseen = sum(token not in known for token in theirs) / len(theirs)
    return [
        f"the calibration is far from the evaluation text: their token distributions lie {distance / own:.1f} times as far"
        f" apart as two parts of that text, and {unseen:.0%} of its tokens never occur"
    ]


def token_distance(ours: Counter[int], theirs: Counter[int]) -> float:
    """Jensen–Shannon distance (square root of the divergence, base 2): 0 for one distribution, 1 for disjoint ones."""
    a, b = sum(ours.values()), sum(theirs.values())
    divergence = 0.0
    for token in ours.keys() | theirs.keys():
        p, q = ours[token] / a, theirs[token] / b
        m = (p + q) / 2
        divergence += (p * math.log2(p / m) if p else 0.0) / 2 + (q * math.log2(q / m) if q else 0.0) / 2
    return math.sqrt(max(0.0, divergence))
