"""What a quantization takes in memory and time, as data fitted to runs of the bundled model (benchmarks/quantize)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from llmopt.quantize import Method, Route

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Cost:
    """``base_bytes``: the libraries alone; ``bytes_per_parameter``: the model in the form in which it is worked on.

    ``start_s``: imports and loading; ``work_s``: seconds for 10⁹ parameters, and for 10⁹ parameters × 1,000 tokens.
    """

    base_bytes: int
    bytes_per_parameter: float
    start_s: float
    s_per_billion: float
    s_per_billion_kilotokens: float = 0.0
    factor: float = 1.0
    memory_factor: float = 1.0

    def memory_bytes(self, parameters: int) -> int:
        return round(self.memory_factor * (self.base_bytes + self.bytes_per_parameter * parameters))

    def seconds(self, parameters: int, tokens: int) -> float:
        billions = parameters / 1e9
        return self.start_s + self.factor * billions * (
            self.s_per_billion + self.s_per_billion_kilotokens * tokens / 1e3
        )

    def corrected(self, run: dict[str, Any]) -> Cost:
        """Scaled so that it gives what a real run took; parts that the run cannot tell keep their share."""
        own = self.seconds(run["parameters"], run["tokens"])
        memory = self.memory_bytes(run["parameters"])
        ratio = run["seconds"] / own
        return replace(
            self,
            start_s=self.start_s * min(1.0, ratio) if ratio < 1 else self.start_s,
            factor=max(0.05, (run["seconds"] - self.start_s * min(1.0, ratio)) / max(1e-6, own - self.start_s)),
            memory_factor=run["memory_bytes"] / memory,
        )


def _fit(mib: int, bytes_per_parameter: float, start_s: float, s_per_billion: float, kilotokens: float = 0.0) -> Cost:
    return Cost(
        base_bytes=mib * MIB, bytes_per_parameter=bytes_per_parameter, start_s=start_s, s_per_billion=s_per_billion,
        s_per_billion_kilotokens=kilotokens,
    )  # fmt: skip


# Method and layout → cost: one run each of the bundled model on two cores, 64 samples of 256 tokens where calibrated.
# Memory for a parameter follows from how the library holds the model: bf16 and what it caches of activations.
COSTS = {
    ("gptq", "compressed-tensors"): _fit(540, 2.5, 6, 100, 100),
    ("gptq", "gptq"): _fit(600, 3.0, 10, 150, 150),
    # Of AWQ most is its grid, which llm-compressor's tries on sixteen of the samples however many there are.
    ("awq", "compressed-tensors"): _fit(600, 4.0, 6, 1900, 240),
    ("awq", "awq"): _fit(1000, 4.0, 10, 5500, 740),
    ("autoround", "auto-round"): _fit(700, 4.0, 10, 150, 400),
    ("autoround", "compressed-tensors"): _fit(700, 4.0, 10, 150, 400),
    ("autoround", "gptq"): _fit(700, 4.0, 10, 150, 400),
    ("autoround", "awq"): _fit(700, 4.0, 10, 150, 400),
    ("w8a8", "compressed-tensors"): _fit(540, 2.5, 6, 100, 80),
    ("rtn", "compressed-tensors"): _fit(480, 2.2, 5, 300),
    ("fp8", "compressed-tensors"): _fit(480, 2.2, 5, 50),
    ("bitsandbytes", "bitsandbytes"): _fit(400, 1.5, 4, 100),
    ("gguf", "gguf"): _fit(350, 0.5, 4, 60),
    ("dynamic", "in-memory"): _fit(380, 5.0, 4, 50),
}
FALLBACK_COST = _fit(600, 4.0, 8, 200, 200)


def cost_of(method: Method, route: Route) -> Cost:
    return COSTS.get((method.method, route.format), FALLBACK_COST)
