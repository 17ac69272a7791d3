"""The options of a server, in one table: the command line, recipes and the refusal of what an engine lacks all read it.

Names are spelled as vLLM spells them where it has them, else as the engine that has them does.  How to add one: a field of
``ServeOptions``, a line here, and a line in the ``flags`` of each backend that has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmopt.core.domain import ServeOptions
from llmopt.core.errors import UsageError

if TYPE_CHECKING:
    from llmopt.serve import Backend


@dataclass(frozen=True, kw_only=True)
class Option:
    """``name`` is the field of ServeOptions; ``minimum`` and ``maximum`` bound a number; ``choices`` a word."""

    name: str
    help: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        return FLAGS_OF_THEIR_OWN.get(self.name, "--" + self.name.replace("_", "-"))


FLAGS_OF_THEIR_OWN = {"extra_args": "--extra-arg"}  # given once for each

OPTIONS = (
    Option(name="max_model_len", help="Context length per sequence.", minimum=1),
    Option(name="max_num_seqs", help="Sequences at once.", minimum=1),
    Option(name="max_num_batched_tokens", help="Tokens of one step over all sequences.", minimum=1),
    Option(name="kv_cache_dtype", help="Number type of the KV cache, in the engine's words: fp8, q8_0."),
    Option(name="enable_prefix_caching", help="Keep the KV cache of prompts that begin alike."),
    Option(name="enable_chunked_prefill", help="Cut long prompts into pieces between the steps of others."),
    Option(
        name="batching",
        help="continuous, or static: a batch is gathered and runs to its slowest member.",
        choices=("continuous", "static"),
    ),
    Option(name="attn_implementation", help="Attention kernel: sdpa, eager, flash_attention_2."),
    Option(name="threads", help="CPU threads of the engine.", minimum=1),
    Option(name="tensor_parallel_size", help="GPUs that share every layer.", minimum=1),
    Option(name="pipeline_parallel_size", help="GPUs that share out the layers.", minimum=1),
    Option(name="gpu_memory_utilization", help="Share of the GPU's memory that may be taken.", minimum=0.01, maximum=1),
    Option(name="block_size", help="Tokens of a block of the KV cache.", minimum=1),
    Option(name="enforce_eager", help="No compilation and no graphs: starts sooner, runs slower."),
    Option(name="gpu_layers", help="Layers on the GPU.", minimum=0),
    Option(name="device_map", help="Where layers go: auto, cpu, cuda, balanced."),
    Option(name="speculative_model", help="Draft model: a folder or GGUF file, or ngram where the engine has it."),
    Option(name="num_speculative_tokens", help="Tokens that are guessed at a time.", minimum=1),
    Option(
        name="lora_modules",
        help="NAME=FOLDER of a LoRA adapter (llamacpp: NAME=FILE.gguf, in every request); may be repeated.",
    ),
    Option(name="limit_mm_per_prompt", help="Images of one request: image=2."),
    Option(name="extra_args", help="Passed to the engine as it is; may be repeated."),
)
BY_NAME = {option.name: option for option in OPTIONS}


# --- from our options to an engine's arguments -----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Switch:
    """A flag without a value: ``on`` when the option is true, ``off`` when it is false."""

    on: str = ""
    off: str = ""


# A flag before the value, a switch, or a function of the value that gives the words.
Flag = str | Switch | Callable[[Any], list[str]]


def arguments(options: ServeOptions, flags: Mapping[str, Flag]) -> list[str]:
    """The engine's words for the options that were asked for, in the order of its table."""
    asked = options.asked
    return [word for name, flag in flags.items() if name in asked for word in words(flag, asked[name])]


def words(flag: Flag, value: Any) -> Iterator[str]:
    if isinstance(flag, Switch):
        yield from filter(None, (flag.on if value else flag.off,))
    elif isinstance(flag, str):
        yield flag
        yield from map(str, value if isinstance(value, (list, tuple)) else (value,))
    else:
        yield from flag(value)


def require_known(backend: Backend, options: ServeOptions) -> None:
    """Raise UsageError for an option that this engine does not have, and name those that do."""
    for name in options.asked:
        if name not in backend.options:
            flag = BY_NAME[name].flag
            raise UsageError(
                f"{backend.name} has no {flag}",
                hint=f"leave it out; {able(name)}; --extra-arg passes words as they are",
            )
    for name, value in options.asked.items():
        require_in_range(BY_NAME[name], value)


def able(name: str) -> str:
    from llmopt import serve

    engines = [other for other in serve.BACKENDS if other != "scripted" and name in serve.backend(other).options]
    return f"engines that have it: {', '.join(engines)}" if engines else "no engine here has it"


def require_in_range(option: Option, value: Any) -> None:
    if option.choices and value not in option.choices:
        raise UsageError(f"{option.flag} is {' or '.join(option.choices)}, not {value!r}", hint=option.help)
    if (option.minimum is not None and value < option.minimum) or (
        option.maximum is not None and value > option.maximum
    ):
        span = f"{option.minimum:g} or more" if option.maximum is None else f"{option.minimum:g} to {option.maximum:g}"
        raise UsageError(f"{option.flag} must be {span}, got {value:g}", hint=option.help)


def command_words(options: ServeOptions) -> list[str]:
    """The options as ``llmopt serve`` and ``llmopt bench`` take them."""
    found = ["--backend", options.backend]
    for name, value in options.asked.items():
        flag = BY_NAME[name].flag
        if isinstance(value, bool):
            found.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, (list, tuple)):
            found += [word for one in value for word in ((f"{flag}={one}",) if one.startswith("-") else (flag, one))]
        else:
            found += [flag, f"{value:g}" if isinstance(value, float) else str(value)]
    return found
