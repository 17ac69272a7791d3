"""Static batching: requests are gathered for a moment, and the batch runs to its slowest member.

What servers did before continuous batching, and what ``generate`` does with a list of prompts: prompts are padded on the
left to the longest, a row that is done stays in the batch and is computed on, and who comes meanwhile waits for the next.
"""

from __future__ import annotations

import argparse
import queue
import re
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

# Run by its path, hf_server.py is a script beside its parts; imported, a module of the package.
# isort: off
if TYPE_CHECKING or __package__:
    from llmopt.serve.shims.hf_news import Deliver, News, die_of
else:
    from hf_news import Deliver, News, die_of
# isort: on

# After these the server lives on, the requests do not; after a failed kernel every later step would fail as well.
OUT_OF_MEMORY = re.compile(r"(?i)out ?of ?memory|can't allocate memory")
GATHER_S = 0.01  # longer makes fuller batches of a trickle, and each of them later


@dataclass(kw_only=True)
class Row:
    """One request of a batch."""

    request: str
    ids: list[int]
    max_tokens: int
    end_ids: frozenset[int]
    tokens: list[int] = field(default_factory=list)
    done: bool = False

    def take(self, token: int) -> None:
        self.tokens.append(token)
        self.done = token in self.end_ids or len(self.tokens) >= self.max_tokens


class StaticBatches:
    """One batch at a time, in a thread of its own. Its KV cache grows with the batch: nothing is reserved."""

    def __init__(self, model: Any, arguments: argparse.Namespace, context: int, deliver: Deliver) -> None:
        self.model, self.size, self.deliver = model, arguments.max_num_seqs, deliver
        self.waiting: queue.Queue[Row] = queue.Queue()
        self.cancelled: set[str] = set()
        self.scheduled_s: float | None = None
        threading.Thread(target=self.work, daemon=True).start()

    def add(self, request: str, ids: list[int], max_tokens: int, end_ids: list[int]) -> None:
        self.waiting.put(Row(request=request, ids=ids, max_tokens=max_tokens, end_ids=frozenset(end_ids)))

    def cancel(self, request: str) -> None:
        self.cancelled.add(request)

    def written_bytes(self) -> int:
        return 0

    def facts(self) -> dict[str, Any]:
        return {"kv_cache_bytes": None, "kv_capacity_tokens": None, "max_concurrency": None}

    def work(self) -> None:
        while True:
            rows = self.gather()
            try:
                self.run(rows)
            except Exception as error:
                self.tell([row for row in rows if not row.done], error=f"{type(error).__name__}: {error}")
                if not OUT_OF_MEMORY.search(f"{type(error).__name__}: {error}"):
                    die_of(error)

    def gather(self) -> list[Row]:
        """The next batch: who waits, and who comes within a moment of the first, up to the size of a batch."""
        rows = [self.waiting.get()]
        deadline = time.monotonic() + GATHER_S
        while len(rows) < self.size:
            try:
                rows.append(self.waiting.get(timeout=max(0.0, deadline - time.monotonic())))
            except queue.Empty:
                break
        return rows

    def run(self, rows: list[Row]) -> None:
        """Greedy steps of the whole batch until its last row is done or left by its client."""
        import torch
        from transformers import DynamicCache

        self.scheduled_s = time.monotonic()
        longest = max(len(row.ids) for row in rows)
        device = self.model.device
        ids = torch.tensor([[0] * (longest - len(row.ids)) + row.ids for row in rows], device=device)
        mask = torch.tensor([[0] * (longest - len(row.ids)) + [1] * len(row.ids) for row in rows], device=device)
        cache = DynamicCache(config=self.model.config)
        with torch.inference_mode():
            while not all(row.done for row in rows):
                places = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
                result = self.model(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=places,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
                ids = result.logits[:, -1].argmax(-1, keepdim=True)
                mask = torch.cat([mask, mask.new_ones((len(rows), 1))], dim=-1)
                self.step(rows, ids[:, 0].tolist())

    def step(self, rows: list[Row], tokens: list[int]) -> None:
        """Hand each row its token; rows that are done take none."""
        going = [row for row in rows if not row.done]
        for row, token in zip(rows, tokens, strict=True):
            if not row.done:
                row.take(token)
            if row.request in self.cancelled:
                self.cancelled.discard(row.request)
                row.done = True
        self.tell(going)

    def tell(self, rows: list[Row], error: str | None = None) -> None:
        self.deliver(
            [
                News(
                    request=row.request,
                    tokens=list(row.tokens),
                    finished=row.done or error is not None,
                    error=error,
                    scheduled_s=self.scheduled_s,
                )
                for row in rows
            ]
        )
