"""Train the small causal language model that llmopt carries with it.

Purpose: quality under quantization must mean something on a machine without a
model hub, so the demo needs a model that has really learned its text.  This
script trains one from nothing but what every Python installation carries: the
sources of the standard library and the help topics of ``pydoc_data``.

Contract: the same Python version, the same arguments and the same number of
threads give the same weights.  One standard-library file in fifty is never
trained on; the loss on those files is the ``validation`` column of the curve
that is written beside the weights (``training.json``).  A killed run starts
again from its last checkpoint.

    python tools/train_demo_model.py --out llmopt/demo/model

The optimizer is Muon for the weight matrices (Jordan et al., 2024) and AdamW for
embeddings, norms and biases; the schedule is a short warm-up, a plateau, and a
linear decay to zero over the last part.  The decay part uses longer windows, so
that the model is trained on the context length that its config declares.  A short
second stage then reads text that was cut at random characters and encoded piece by
piece: a prompt such as ``def `` ends inside what would have been one token, and a
model that never saw such an end does not know how to go on.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import platform
import random
import sys
import sysconfig
import time
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

END_OF_TEXT = "<|endoftext|>"
SPECIAL_TOKENS = [END_OF_TEXT, "<|im_start|>", "<|im_end|>"]
# The split that Qwen2 uses, so that every converter recognises the pre-tokenizer.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LARGEST_FILE = 400_000  # bytes; larger ones are generated tables


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What determines the trained weights (with the corpus)."""

    vocabulary: int = 4096
    steps: int = 2200
    tokens_per_step: int = 4096
    tokens_per_pass: int = 1024  # gradients are accumulated: small passes stay in the processor's cache
    window: int = 512
    long_window: int = 1024
    decay_share: float = 0.3
    warmup_steps: int = 60
    matrix_lr: float = 4e-3
    other_lr: float = 3e-3
    weight_decay: float = 0.05
    finish_steps: int = 320
    finish_factor: float = 0.3  # of the learning rates above, falling to zero
    finish_piece: int = 160  # characters between two cuts, on average
    seed: int = 20261120
    threads: int = 2


def corpus() -> tuple[list[str], list[str]]:
    """Texts to train on, and the disjoint texts to validate on (one file in fifty)."""
    train, validation = [], []
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        text = readable_source(path, name)
        if text is None:
            continue
        held_out = zlib.crc32(name.encode()) % 50 == 0
        (validation if held_out else train).append(text)
    return train, validation


def readable_source(path: Path, name: str) -> str | None:
    """The text of one library file, or None for tables, foreign scripts and broken samples."""
    table = name.startswith("encodings/") and not name.endswith(
        ("__init__.py", "idna.py", "punycode.py", "utf_8_sig.py")
    )
    if "site-packages" in name or "lib2to3/tests/data" in name or table or path.stat().st_size > LARGEST_FILE * 2:
        return None
    data = path.read_bytes()
    if name == "pydoc_data/topics.py":
        return "\n\n".join(ast.literal_eval(data.decode().split("topics = ", 1)[1]).values())
    if len(data) > LARGEST_FILE or sum(byte > 127 for byte in data) > 0.01 * len(data):
        return None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def train_tokenizer(texts: list[str], vocabulary: int) -> Tokenizer:
    """Byte-level BPE with Qwen2's normalizer and split."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """One row of token ids, texts separated by the end-of-text token; uint16, shape (tokens,)."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    rows = [np.asarray([*e.ids, end], dtype=np.uint16) for e in tokenizer.encode_batch(texts)]
    return np.concatenate(rows)


class Batches:
    """Windows in a fresh seeded order each epoch; shape (rows, window + 1), int64."""

    def __init__(self, tokens: np.ndarray, seed: int) -> None:
        self.tokens = torch.from_numpy(tokens.astype(np.int64))
        self.seed = seed

    def at(self, step: int, rows: int, window: int) -> torch.Tensor:
        """The batch of one step: a pure function of the step, so a resumed run sees the same text."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        per_epoch = len(self.tokens) // (rows * window)
        epoch, place = divmod(step, per_epoch)
        order = torch.randperm(per_epoch * rows, generator=torch.Generator().manual_seed(self.seed + epoch))
        jitter = int(torch.randint(window, (1,), generator=generator))
        starts = order[place * rows : (place + 1) * rows] * window + jitter
        starts = starts.clamp(max=len(self.tokens) - window - 1)
        return torch.stack([self.tokens[s : s + window + 1] for s in starts.tolist()])


def learning_rate_factor(step: int, settings: Settings) -> float:
    warm = min(1.0, (step + 1) / settings.warmup_steps)
    decay_steps = settings.steps * settings.decay_share
    return min(warm, (settings.steps - step) / decay_steps, 1.0)


def build_model(settings: Settings, end_token: int) -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=settings.vocabulary,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=settings.long_window,
        tie_word_embeddings=True,
        bos_token_id=end_token,
        eos_token_id=end_token,
        pad_token_id=None,
        use_cache=True,
    )
    torch.manual_seed(settings.seed)
    return Qwen2ForCausalLM(config).float()


def optimizers(model: Qwen2ForCausalLM, settings: Settings) -> list[torch.optim.Optimizer]:
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(
            matrices, lr=settings.matrix_lr, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=settings.other_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def loss_of(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Mean next-token cross entropy in nats."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())


@torch.no_grad()
def validation_loss(model: torch.nn.Module, tokens: np.ndarray, window: int, limit: int | None = None) -> float:
    rows = torch.from_numpy(tokens.astype(np.int64))[: len(tokens) // (window + 1) * (window + 1)].view(-1, window + 1)
    losses = [loss_of(model, part).item() * len(part) for part in rows[:limit].split(8)]
    return sum(losses) / len(rows[:limit])


def train(
    model: Qwen2ForCausalLM, tokens: np.ndarray, validation: np.ndarray, settings: Settings, out: Path
) -> list[dict]:
    """Run all steps, resuming from ``checkpoint.pt`` in ``out``; returns the loss curve."""
    batches, steppers = Batches(tokens, settings.seed), optimizers(model, settings)
    checkpoint, curve, first = out / "checkpoint.pt", [], 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        if saved["settings"] == asdict(settings):
            model.load_state_dict(saved["model"])
            for stepper, state in zip(steppers, saved["optimizers"], strict=True):
                stepper.load_state_dict(state)
            curve, first = saved["curve"], saved["step"]
    base_rates = [settings.matrix_lr, settings.other_lr]
    compiled = torch.compile(model, dynamic=False)
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[word]}"),
    )
    with Progress(*columns, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("", total=settings.steps, completed=first, word="")
        recent: list[float] = []
        started = time.monotonic()
        for step in range(first, settings.steps):
            factor = learning_rate_factor(step, settings)
            for stepper, rate in zip(steppers, base_rates, strict=True):
                stepper.param_groups[0]["lr"] = rate * factor
            window = settings.window if step < settings.steps * (1 - settings.decay_share) else settings.long_window
            batch = batches.at(step, settings.tokens_per_step // window, window)
            parts = batch.split(settings.tokens_per_pass // window)
            loss = torch.zeros(())
            for part in parts:
                share = loss_of(compiled, part) / len(parts)
                share.backward()
                loss += share.detach()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for stepper in steppers:
                stepper.step()
                stepper.zero_grad(set_to_none=True)
            recent.append(loss.item())
            progress.update(task, advance=1, word=f"loss {recent[-1]:.3f}")
            if (step + 1) % 100 == 0 or step + 1 == settings.steps:
                point = {
                    "step": step + 1,
                    "tokens": (step + 1) * settings.tokens_per_step,
                    "train_loss": round(sum(recent) / len(recent), 4),
                    "validation_loss": round(validation_loss(model, validation, settings.window, 64), 4),
                }
                curve.append(point)
                print(json.dumps(point | {"seconds": round(time.monotonic() - started)}), file=sys.stderr, flush=True)
                recent = []
                state = {"settings": asdict(settings), "model": model.state_dict(), "step": step + 1, "curve": curve}
                torch.save(state | {"optimizers": [s.state_dict() for s in steppers]}, checkpoint.with_suffix(".new"))
                checkpoint.with_suffix(".new").replace(checkpoint)
    return curve


class CutTexts:
    """Windows of text that was cut at random characters and encoded piece by piece; shape (rows, window + 1), int64."""

    def __init__(self, texts: list[str], tokenizer: Tokenizer, settings: Settings) -> None:
        self.texts = [text for text in texts if len(text) > 2000]
        self.tokenizer, self.settings = tokenizer, settings
        self.random = random.Random(settings.seed)

    def row(self, window: int) -> list[int]:
        ids: list[int] = []
        while len(ids) <= window:
            text = self.random.choices(self.texts, weights=[len(t) for t in self.texts])[0]
            place = self.random.randrange(len(text)) if self.random.random() < 0.7 else 0
            end = min(len(text), place + 5 * window)
            while place < end and len(ids) <= window:
                size = 1 + int(self.random.expovariate(1 / self.settings.finish_piece))
                ids += self.tokenizer.encode(text[place : min(end, place + size)]).ids
                place += size
            ids.append(self.tokenizer.token_to_id(END_OF_TEXT))
        return ids[: window + 1]

    def batch(self, rows: int, window: int) -> torch.Tensor:
        return torch.tensor([self.row(window) for _ in range(rows)])


def finish(model: Qwen2ForCausalLM, texts: list[str], tokenizer: Tokenizer, settings: Settings) -> list[float]:
    """The second stage; returns its training loss, averaged over every 40 steps."""
    cut, steppers, window = CutTexts(texts, tokenizer, settings), optimizers(model, settings), settings.window
    rates, compiled, losses = [settings.matrix_lr, settings.other_lr], torch.compile(model, dynamic=False), []
    rows = settings.tokens_per_step // window
    for step in range(settings.finish_steps):
        warm = min(1.0, (step + 1) / 20)
        factor = settings.finish_factor * warm * (1 - step / settings.finish_steps)
        for stepper, rate in zip(steppers, rates, strict=True):
            stepper.param_groups[0]["lr"] = rate * factor
        parts = cut.batch(rows, window).split(settings.tokens_per_pass // window)
        losses.append(0.0)
        for part in parts:
            share = loss_of(compiled, part) / len(parts)
            share.backward()
            losses[-1] += share.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad(set_to_none=True)
        if (step + 1) % 40 == 0:
            print(
                json.dumps({"finish_step": step + 1, "train_loss": round(sum(losses[-40:]) / 40, 4)}),
                file=sys.stderr,
                flush=True,
            )
    return [round(sum(losses[i : i + 40]) / 40, 4) for i in range(0, len(losses), 40)]


def save(model: Qwen2ForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=model.config.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    model.to(torch.bfloat16).save_pretrained(out)
    wrapped.save_pretrained(out)
    tokenizer.save(str(out / "tokenizer.json"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and its loss curve")
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--finish-only", action="store_true", help="only the second stage, on the weights in --out")
    arguments = parser.parse_args()
    settings = Settings(steps=arguments.steps)
    torch.set_num_threads(settings.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)

    texts, held_out = corpus()
    tokenizer = train_tokenizer(texts, settings.vocabulary)
    tokens, validation = encode(tokenizer, texts), encode(tokenizer, held_out)
    model = build_model(settings, tokenizer.token_to_id(END_OF_TEXT))
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{len(tokens):,} tokens to train on, {len(validation):,} held out, {parameters:,} parameters", file=sys.stderr
    )

    report_file = arguments.out / "training.json"
    if arguments.finish_only:
        curve = json.loads(report_file.read_text())["curve"]
    else:
        curve = train(model, tokens, validation, settings, arguments.out)
        save(model, tokenizer, arguments.out)
    # The second stage starts from the saved, rounded weights, so that it can be run by itself and gives the same.
    model = Qwen2ForCausalLM.from_pretrained(arguments.out, dtype=torch.float32)
    finishing = finish(model, texts, tokenizer, settings)
    final = validation_loss(model, validation, settings.long_window)
    save(model, tokenizer, arguments.out)
    report = {
        "settings": asdict(settings),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "parameters": parameters,
        "training_tokens": len(tokens),
        "validation_tokens": len(validation),
        "validation_perplexity": round(math.exp(final), 3),
        "curve": curve,
        "finish_train_loss": finishing,
    }
    report_file.write_text(json.dumps(report, indent=1) + "\n")
    (arguments.out / "checkpoint.pt").unlink(missing_ok=True)
    print(f"held-out perplexity {math.exp(final):.2f}", file=sys.stderr)


if __name__ == "__main__":
    main()
