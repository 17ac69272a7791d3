"""What an engine is asked to hold at once: so many sequences of so many tokens, under its own settings."""

from __future__ import annotations

from dataclasses import dataclass

from llmopt.core.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Load:
    """``sequences`` at once, each of ``prompt`` tokens that are read together and ``output`` tokens after them.

    ``step_tokens`` and ``max_num_seqs`` are how many tokens and sequences the engine takes in one step at most; ``None`` is
    its own default.
    """

    sequences: int = 1
    prompt: int = 2048
    output: int = 0
    step_tokens: int | None = None
    attention: str = "sdpa"
    max_num_seqs: int | None = None

    @property
    def context(self) -> int:
        return self.prompt + self.output


def make_load(
    *, input_tokens: int | None, output_tokens: int | None, batch: int | None, context: int | None, max_num_seqs: int | None,
    step_tokens: int | None = None, attention: str | None = None, longest: int | None = None,
) -> Load:  # fmt: skip
    """Of either spelling: prompt, output and batch, or context and sequences. Raises UsageError for both at once."""
    if context is not None and (input_tokens is not None or output_tokens is not None):
        raise UsageError(
            "--context and --input-tokens say the same twice",
            hint="--context C --max-num-seqs S, or --input-tokens N --output-tokens M --batch B",
        )
    if batch is not None and max_num_seqs is not None and batch != max_num_seqs:
        raise UsageError(
            f"--batch {batch} and --max-num-seqs {max_num_seqs} contradict each other", hint="give one of them"
        )
    if context is None and input_tokens is None and output_tokens is None:
        context = min(2048, longest or 2048)
    return Load(
        sequences=batch or max_num_seqs or 1,
        prompt=context if context is not None else input_tokens or 1,
        output=0 if context is not None else output_tokens or 0,
        step_tokens=step_tokens,
        max_num_seqs=max_num_seqs,
        attention=attention or "sdpa",
    )
