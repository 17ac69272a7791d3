"""The parts that layers are made of, each as a list of tensors: attention, MLP, experts, recurrent mixers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmopt.core.kv_cache import listed
from llmopt.estimate.shape import Reader, Role, Tensor

Truth = bool | str  # itself, or the key of the config that tells it
Parts = list[Tensor]


def matrix(part: str, rows: int, columns: int, *, bias: bool = False, role: Role = "linear", stack: int = 1) -> Parts:
    """A weight, and its bias where it has one."""
    found = [Tensor(part=part, role=role, rows=rows, columns=columns, stack=stack)]
    if bias:
        found.append(Tensor(part=f"{part}.bias", role="bias", rows=1, columns=rows, stack=stack))
    return found


def vector(part: str, width: int, role: Role = "norm") -> Parts:
    return [Tensor(part=part, role=role, rows=1, columns=width)]


def norm(width: int, *, bias: bool = False, count: int = 1, part: str = "norm") -> Parts:
    one = vector(part, width) + (vector(f"{part}.bias", width, "bias") if bias else [])
    return one * count


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Multi-head, grouped or multi-query. ``qk_norm``: "head" (one weight for all heads), "heads" (each its own) or "full".

    ``fused``: one matrix for queries, keys and values; ``gated``: the query matrix gives a gate of its width too.
    """

    qkv_bias: Truth = False
    o_bias: Truth = False
    qk_norm: str = ""
    qk_norm_if: Truth = True
    fused: bool = False
    gated: bool = False
    sinks: bool = False

    def parts(self, c: Reader, layer: int) -> Parts:
        hidden, heads, kv, head = c.hidden, c.heads, c.kv_heads, c.head
        bias, found = c.flag(self.qkv_bias), Parts()
        if self.fused:
            found += matrix("qkv", (heads + 2 * kv) * head, hidden, bias=bias)
        else:
            found += matrix("q", heads * head * (2 if self.gated else 1), hidden, bias=bias)
            found += matrix("k", kv * head, hidden, bias=bias)
            found += matrix("v", kv * head, hidden, bias=bias)
        found += matrix("o", hidden, heads * head, bias=c.flag(self.o_bias))
        if self.qk_norm and c.flag(self.qk_norm_if):
            widths = {"head": (head, head), "heads": (heads * head, kv * head), "full": (heads * head, kv * head)}
            for width in widths[self.qk_norm]:
                found += norm(width, part="qk_norm")
        if self.sinks:
            found += vector("sinks", heads, "state")
        return found


@dataclass(frozen=True, kw_only=True)
class Latent:
    """Multi-head latent attention (DeepSeek-V2, section 2.1): keys and values out of one narrow row."""

    bias: Truth = "attention_bias"

    def parts(self, c: Reader, layer: int) -> Parts:
        hidden, heads, bias = c.hidden, c.heads, c.flag(self.bias)
        rope, plain = c.number("qk_rope_head_dim"), c.number("qk_nope_head_dim")
        value, latent, narrow = c.number("v_head_dim"), c.number("kv_lora_rank"), c.count("q_lora_rank")
        if narrow:
            found = matrix("q_a", narrow, hidden, bias=bias) + norm(narrow, part="q_a_norm")
            found += matrix("q_b", heads * (plain + rope), narrow)
        else:
            found = matrix("q", heads * (plain + rope), hidden)
        found += matrix("kv_a", latent + rope, hidden, bias=bias) + norm(latent, part="kv_a_norm")
        found += matrix("kv_b", heads * (plain + value), latent)
        return found + matrix("o", hidden, heads * value, bias=bias)


@dataclass(frozen=True, kw_only=True)
class Mlp:
    """``fused``: gate and up lie in one matrix; without ``gated`` there is no gate. ``width`` names the config's key."""

    width: tuple[str, ...] = ("intermediate_size", "n_inner", "ffn_hidden_size", "ffn_dim")
    bias: Truth = False
    gated: bool = True
    fused: bool = False
    four_times: bool = False  # where the config names no width, it is 4 × hidden

    def inner(self, c: Reader, layer: int) -> int:
        value = c.of_layer(self.width[0], layer) if isinstance(c.get(self.width[0]), list) else c.get(*self.width)
        if value is None and self.four_times:
            return 4 * c.hidden
        return c.whole(self.width[0], value) if value is not None else c.number(*self.width)

    def parts(self, c: Reader, layer: int) -> Parts:
        return mlp(c.hidden, self.inner(c, layer), bias=c.flag(self.bias), gated=self.gated, fused=self.fused)


def mlp(
    hidden: int, inner: int, *, bias: bool = False, gated: bool = True, fused: bool = False, prefix: str = ""
) -> Parts:
    if gated and fused:
        found = matrix(f"{prefix}gate_up", 2 * inner, hidden, bias=bias)
    else:
        found = matrix(f"{prefix}gate", inner, hidden, bias=bias) if gated else Parts()
        found += matrix(f"{prefix}up", inner, hidden, bias=bias)
    return found + matrix(f"{prefix}down", hidden, inner, bias=bias)


def experts(count: int, hidden: int, inner: int, *, bias: bool = False, gated: bool = True) -> Parts:
    found = matrix("gate", inner, hidden, role="expert", stack=count, bias=bias) if gated else Parts()
    found += matrix("up", inner, hidden, role="expert", stack=count, bias=bias)
    return found + matrix("down", hidden, inner, role="expert", stack=count, bias=bias)


PLAIN_MLP = Mlp()
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True, kw_only=True)
class Experts:
    """A mixture: router, experts, perhaps experts that every token passes, in all layers or in some.

    ``shared``: the key of their width, or "count" for ``n_shared_experts`` of the experts' own; ``shared_gate``: one row
    that weighs them; ``correction``: one number per expert beside the router.
    """

    inner: tuple[str, ...] = ("moe_intermediate_size", "intermediate_size", "expert_ffn_hidden_size")
    count: tuple[str, ...] = EXPERTS
    shared: str = ""
    shared_gate: bool = False
    correction: bool = False
    router_bias: bool = False
    bias: bool = False
    gated: bool = True
    dense: Mlp = PLAIN_MLP
    every: str = ""  # key: one layer in so many has experts
    first_dense: str = ""  # key: how many layers before have none
    only_dense: str = ""  # key: a list of layers that have none

    def is_mixture(self, c: Reader, layer: int) -> bool:
        if self.first_dense and layer < c.count(self.first_dense):
            return False
        if self.only_dense and layer in listed(c.config, self.only_dense):
            return False
        if isinstance(c.get("mlp_layer_types"), list):
            return bool(c.of_layer("mlp_layer_types", layer) == "sparse")
        return not self.every or (layer + 1) % (c.count(self.every) or 1) == 0

    def parts(self, c: Reader, layer: int) -> Parts:
        if not self.is_mixture(c, layer) or not c.count(*self.count):
            return self.dense.parts(c, layer)
        hidden, count, inner = c.hidden, c.number(*self.count), c.number(*self.inner)
        found = matrix("router", count, hidden, role="router", bias=self.router_bias)
        found += vector("correction", count, "bias") if self.correction else []
        found += experts(count, hidden, inner, bias=self.bias, gated=self.gated)
        if width := self.shared_width(c, inner):
            found += mlp(hidden, width, gated=self.gated, prefix="shared_")
            found += matrix("shared_router", 1, hidden, role="router") if self.shared_gate else []
        return found

    def shared_width(self, c: Reader, inner: int) -> int:
        if self.shared == "count":
            return inner * c.count("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
        return c.count(self.shared) if self.shared else 0


def mamba(c: Reader) -> Parts:
    """Mamba (section 3.4): selective state space with a state for each channel."""
    hidden, state, width = c.hidden, c.number("state_size", "mamba_d_state"), c.number("conv_kernel", "mamba_d_conv")
    inner = c.get("intermediate_size") if c.get("state_size") else None
    inner = c.whole("intermediate_size", inner or c.number("mamba_expand", "expand") * hidden)
    rank = c.get("time_step_rank", "mamba_dt_rank")
    rank = -(-hidden // 16) if rank in (None, "auto") else c.whole("time_step_rank", rank)
    bias = bool(c.get("use_bias", "mamba_proj_bias"))
    found = matrix("ssm_in", 2 * inner, hidden, bias=bias)
    found += conv(inner, width, bias=bool(c.get("use_conv_bias", "mamba_conv_bias")))
    found += matrix("ssm_x", rank + 2 * state, inner) + matrix("ssm_dt", inner, rank, bias=True)
    found += [Tensor(part="ssm_a", role="state", rows=inner, columns=state), *vector("ssm_d", inner, "state")]
    return found + matrix("ssm_out", hidden, inner, bias=bias)


def mamba2(
    c: Reader, *, inner: int, heads: int, groups: int, state: int, kernel: int, gated_norm: bool, **flags: Any
) -> Parts:
    """Mamba-2 (section 7): one state for each head, groups share B and C."""
    bias, conv_bias = bool(flags.get("bias")), bool(flags.get("conv_bias", True))
    mixed = inner + 2 * groups * state
    found = matrix("ssm_in", inner + mixed + heads, c.hidden, bias=bias) + conv(mixed, kernel, bias=conv_bias)
    found += vector("ssm_dt", heads, "state") + vector("ssm_a", heads, "state") + vector("ssm_d", heads, "state")
    found += norm(inner, part="ssm_norm") if gated_norm else []
    return found + matrix("ssm_out", c.hidden, inner, bias=bias)


def conv(channels: int, width: int, *, bias: bool) -> Parts:
    found = [Tensor(part="conv", role="conv", rows=channels, columns=width)]
    return found + (vector("conv.bias", channels, "bias") if bias else [])


def delta_net(c: Reader, *, split: bool) -> Parts:
    """Gated DeltaNet of Qwen3-Next; ``split``: four input matrices where it has two (Qwen3.5)."""
    keys, values = c.number("linear_num_key_heads"), c.number("linear_num_value_heads")
    key, value = keys * c.number("linear_key_head_dim"), values * c.number("linear_value_head_dim")
    found = Parts()
    if split:
        for part, rows in (("qkv", 2 * key + value), ("z", value), ("b", values), ("a", values)):
            found += matrix(f"ssm_{part}", rows, c.hidden)
    else:
        found += matrix("ssm_in", 2 * key + 2 * value, c.hidden) + matrix("ssm_ba", 2 * values, c.hidden)
    found += conv(2 * key + value, c.number("linear_conv_kernel_dim"), bias=False)
    found += vector("ssm_dt", values, "state") + vector("ssm_a", values, "state")
    return found + norm(c.number("linear_value_head_dim"), part="ssm_norm") + matrix("ssm_out", c.hidden, value)
