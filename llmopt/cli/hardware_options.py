"""What the options of ``llmopt estimate`` tell of engines, devices, drafts and prices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from llmopt.core.errors import UsageError

if TYPE_CHECKING:
    from llmopt.estimate.memory import Devices
    from llmopt.estimate.prices import Price
    from llmopt.estimate.roofline import Peak
    from llmopt.estimate.speed import Draft

THIS = "this"


def make_devices(gpu: str | None, vram: str | None, gpus: int | None, tensor_parallel: int | None) -> Devices:
    from llmopt.core.units import parse_quantity, show
    from llmopt.estimate.memory import Devices

    count = gpus or tensor_parallel or 1
    if tensor_parallel and count % tensor_parallel:
        raise UsageError(
            f"--tensor-parallel-size {tensor_parallel} does not divide --gpus {count}", hint=f"--gpus {tensor_parallel}"
        )
    found = None
    if gpu == THIS:
        from llmopt.estimate.peak import this_device

        found = this_device()
    elif gpu:
        from llmopt.estimate.hardware import device

        found = device(gpu)
    memory = int(parse_quantity(vram, "bytes")) if vram else found.memory_bytes if found else None
    if memory is not None and memory <= 0:
        raise UsageError("--vram must be more than 0", hint="--vram 24GiB")
    name = found.name if found else f"a GPU of {show(memory, 'bytes')}" if memory else ""
    return Devices(
        count=count,
        tensor_parallel=tensor_parallel or count,
        memory_bytes=memory,
        name=name,
        kind=found.kind if found else "gpu",
    )


def require_heard(backend: str, **asked: object) -> None:
    """Raise UsageError for an option that the engine does not have; of an engine that is not known nothing is said."""
    from llmopt.estimate.activations import STEPWISE

    engines = {
        "attention": ("--attn-implementation", ("hf",)),
        "step_tokens": ("--max-num-batched-tokens", (*STEPWISE, "llamacpp")),
        "utilization": ("--gpu-memory-utilization", STEPWISE),
    }
    if backend not in ("hf", "llamacpp", *STEPWISE):
        return
    for name, value in asked.items():
        option, hearing = engines[name]
        if value is not None and backend not in hearing:
            raise UsageError(f"{backend} has no {option}", hint=f"--backend {hearing[0]}, or leave {option} out")


def make_peak(gpu: str | None, vram: str | None, bandwidth: str | None, flops: float | None) -> Peak | None:
    """``None`` where only its memory was told."""
    from llmopt.core.units import parse_quantity
    from llmopt.estimate.peak import named_peak, peak_of, this_peak

    if (bandwidth is None) != (flops is None):
        raise UsageError("a device needs --bandwidth and --flops together", hint="--bandwidth 1008GB --flops 165e12")
    if bandwidth is not None and flops is not None:
        reading = parse_quantity(bandwidth, "bytes")
        if not (reading > 0 and 0 < flops < float("inf")):
            raise UsageError("--bandwidth and --flops must be more than 0", hint="--bandwidth 1008GB --flops 165e12")
        return named_peak(reading, flops, gpu or f"a GPU of {bandwidth}/s")
    if gpu and gpu != THIS:
        from llmopt.estimate.hardware import device

        return peak_of(device(gpu))
    return None if vram else this_peak()


def make_draft(tokens: int | None, acceptance: float | None, parameters: float | None) -> Draft | None:
    from llmopt.estimate.shape import LARGEST
    from llmopt.estimate.speed import Draft

    if tokens is None:
        if acceptance is not None or parameters is not None:
            raise UsageError(
                "a draft is known by how many tokens it proposes",
                hint="--num-speculative-tokens 4 --acceptance-rate 0.7",
            )
        return None
    if parameters is not None and not parameters < LARGEST:
        raise UsageError(f"--draft-parameters {parameters:g} is no model's size", hint="--draft-parameters 0.5e9")
    return Draft(tokens=tokens, acceptance=acceptance, bytes=2 * (parameters or 0.0))


def make_price(price_per_hour: float | None, prices: Path | None) -> Callable[[Peak], Price | None]:
    """From a peak to its price, or to ``None``."""
    from llmopt.estimate.prices import given_price, price_of, read_prices

    if price_per_hour is not None:
        given = given_price(price_per_hour)
        return lambda peak: given

    if prices is not None:
        read_prices(prices)  # what is wrong with it is said even where no speed is known

    def found(peak: Peak) -> Price | None:
        price = price_of(peak.key, prices)
        if price is None and prices is not None:
            raise UsageError(f"{prices} has no price of {peak.key}", hint=f'["{peak.key}"] on_demand = 2.5')
        return price

    return found
