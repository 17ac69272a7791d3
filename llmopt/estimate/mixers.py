"""What single families have of their own: recurrent layers, odd mixtures, and what lies beside a language model."""

from __future__ import annotations

from dataclasses import replace

from llmopt.estimate import blocks
from llmopt.estimate.blocks import Attention, Experts, Mlp, Parts, conv, experts, matrix, mlp, norm, vector
from llmopt.estimate.shape import Reader

# --- recurrent layers -------------------------------------------------------------------------------------------


def mamba(c: Reader, layer: int) -> Parts:
    return blocks.mamba(c)


def jamba(c: Reader, layer: int) -> Parts:
    """Mamba with norms of its three small inputs."""
    state = c.number("mamba_d_state")
    rank = c.get("mamba_dt_rank")
    rank = -(-c.hidden // 16) if rank in (None, "auto") else c.whole("mamba_dt_rank", rank)
    return blocks.mamba(c) + norm(rank, part="ssm_norm") + norm(state, part="ssm_norm", count=2)


def mamba2(c: Reader, layer: int) -> Parts:
    inner = c.number("expand") * c.hidden
    return blocks.mamba2(
        c, inner=inner, heads=c.number("num_heads"), groups=c.number("n_groups"), state=c.number("state_size"),
        kernel=c.number("conv_kernel"), gated_norm=True, bias=c.get("use_bias"), conv_bias=c.get("use_conv_bias"),
    )  # fmt: skip


def bamba(c: Reader, layer: int) -> Parts:
    return bamba_like(c, inner=c.number("mamba_expand") * c.hidden, gated_norm=True)


granite = bamba


def falcon_h1(c: Reader, layer: int) -> Parts:
    inner = c.get("mamba_d_ssm")
    inner = c.number("mamba_expand") * c.hidden if inner is None else c.whole("mamba_d_ssm", inner)
    return bamba_like(c, inner=inner, gated_norm=bool(c.get("mamba_rms_norm")))


def bamba_like(c: Reader, *, inner: int, gated_norm: bool) -> Parts:
    return blocks.mamba2(
        c, inner=inner, heads=c.number("mamba_n_heads"), groups=c.number("mamba_n_groups"),
        state=c.number("mamba_d_state"), kernel=c.number("mamba_d_conv"), gated_norm=gated_norm,
        bias=c.get("mamba_proj_bias"), conv_bias=c.get("mamba_conv_bias"),
    )  # fmt: skip


def nemotron(c: Reader, layer: int) -> Parts:
    heads = c.number("mamba_num_heads")
    return blocks.mamba2(
        c, inner=heads * c.number("mamba_head_dim"), heads=heads, groups=c.number("n_groups"),
        state=c.number("ssm_state_size"), kernel=c.number("conv_kernel"), gated_norm=True,
        bias=c.get("use_bias"), conv_bias=c.get("use_conv_bias"),
    )  # fmt: skip


def delta_net(c: Reader, layer: int) -> Parts:
    return blocks.delta_net(c, split=False)


def split_delta_net(c: Reader, layer: int) -> Parts:
    return blocks.delta_net(c, split=True)


def lightning(c: Reader, layer: int) -> Parts:
    """Lightning attention of MiniMax-Text-01."""
    width = c.heads * c.head
    found = matrix("qkv", 3 * width, c.hidden) + matrix("lightning_out", c.hidden, width)
    found += matrix("ssm_z", width, c.hidden)
    return found + norm(width, part="ssm_norm")


def short_conv(c: Reader, layer: int) -> Parts:
    bias = bool(c.get("conv_bias"))
    found = matrix("ssm_in", 3 * c.hidden, c.hidden, bias=bias) + conv(c.hidden, c.number("conv_L_cache"), bias=bias)
    return found + matrix("ssm_out", c.hidden, c.hidden, bias=bias)


# --- MLPs and mixtures ------------------------------------------------------------------------------------------


class JambaMlp(Experts):
    def is_mixture(self, c: Reader, layer: int) -> bool:
        period, offset = c.number("expert_layer_period", otherwise=2), c.get("expert_layer_offset")
        return c.count("num_experts") > 1 and layer % period == (1 if offset is None else offset)


class ErnieExperts(Experts):
    def is_mixture(self, c: Reader, layer: int) -> bool:
        last = c.get("moe_layer_end_index")
        last = c.layers - 1 if last in (None, -1) else last
        return (layer + 1) % (c.count("moe_layer_interval") or 1) == 0 and c.count(
            "moe_layer_start_index"
        ) <= layer <= last


class GraniteHybridMlp(Experts):
    """Experts where there are any, and in every layer a fused MLP beside them."""

    def parts(self, c: Reader, layer: int) -> Parts:
        found = mlp(c.hidden, c.number("shared_intermediate_size"), fused=True, prefix="shared_")
        return found + (super().parts(c, layer) if c.count(*self.count) else [])


class Llama4Experts(Experts):
    def is_mixture(self, c: Reader, layer: int) -> bool:
        listed = c.get("moe_layers")
        return layer in listed if listed else (layer + 1) % c.number("interleave_moe_layer_step") == 0


class NemotronExperts(Experts):
    """Without gates; experts may work in a narrower space that two matrices lead to and from."""

    def parts(self, c: Reader, layer: int) -> Parts:
        count, narrow, hidden = c.number("n_routed_experts"), c.count("moe_latent_size"), c.hidden
        found = matrix("router", count, hidden, role="router") + vector("correction", count, "bias")
        found += experts(count, narrow or hidden, c.number("moe_intermediate_size"), gated=False)
        if narrow:
            found += matrix("latent_in", narrow, hidden) + matrix("latent_out", hidden, narrow)
        return found + mlp(hidden, c.number("moe_shared_expert_intermediate_size"), gated=False, prefix="shared_")


class Lfm2Mlp(Mlp):
    def inner(self, c: Reader, layer: int) -> int:
        width = c.number("intermediate_size", "block_ff_dim")
        if c.get("block_auto_adjust_ff_dim") is False:
            return width
        multiple = c.number("block_multiple_of", otherwise=256)
        width = int((c.get("block_ffn_dim_multiplier") or 1.0) * int(2 * width / 3))
        return -(-width // multiple) * multiple


class DbrxExperts(Experts):
    def parts(self, c: Reader, layer: int) -> Parts:
        inner = replace(c, config=c.get("ffn_config") or {}, place=f"{c.place}, ffn_config")
        count, width = inner.number("moe_num_experts"), inner.number("ffn_hidden_size")
        return matrix("router", count, c.hidden, role="router") + experts(count, c.hidden, width)


class DbrxAttention(Attention):
    def parts(self, c: Reader, layer: int) -> Parts:
        kv = replace(c, config=c.get("attn_config") or {}).number("kv_n_heads")
        return matrix("qkv", (c.heads + 2 * kv) * c.head, c.hidden) + matrix("o", c.hidden, c.hidden)


class HalvedMlp(Mlp):
    """The first Qwen's number is of gate and up together."""

    def inner(self, c: Reader, layer: int) -> int:
        return c.number("intermediate_size") // 2


class MptMlp(Mlp):
    def inner(self, c: Reader, layer: int) -> int:
        return c.number("expansion_ratio", otherwise=4) * c.hidden


# --- beside the layers ------------------------------------------------------------------------------------------


class Gemma3nAttention(Attention):
    """The last layers take their keys and values from an earlier one."""

    def parts(self, c: Reader, layer: int) -> Parts:
        found = super().parts(c, layer)
        if layer < c.layers - c.count("num_kv_shared_layers"):
            return found
        return [t for t in found if t.part not in ("k", "v") and not (t.part == "qk_norm" and t is found[-1])]


def bloom_norm(c: Reader) -> Parts:
    return norm(c.hidden, bias=True, part="embed_norm")


def opt_projections(c: Reader) -> Parts:
    width = c.number("word_embed_proj_dim", otherwise=c.hidden)
    return [] if width == c.hidden else matrix("project_in", c.hidden, width) + matrix("project_out", width, c.hidden)


def falcon_norms(c: Reader, layer: int) -> Parts:
    count = (
        2
        if not c.get("parallel_attn")
        else c.get("num_ln_in_parallel_attn") or (2 if c.get("new_decoder_architecture") else 1)
    )
    return norm(c.hidden, bias=True, count=count)


def stablelm_norms(c: Reader, layer: int) -> Parts:
    return norm(c.hidden, bias=True, count=1 if c.get("use_parallel_residual") else 2)


def gemma3n_layer(c: Reader, layer: int) -> Parts:
    """Per-layer inputs, LAuReL and AltUp of Gemma 3n."""
    hidden, narrow, rank, streams = (
        c.hidden,
        c.number("hidden_size_per_layer_input"),
        c.number("laurel_rank"),
        c.number("altup_num_inputs"),
    )
    found = matrix("per_layer_gate", narrow, hidden) + matrix("per_layer_projection", hidden, narrow) + norm(hidden)
    found += matrix("laurel_left", rank, hidden) + matrix("laurel_right", hidden, rank) + norm(hidden)
    found += vector("altup_scale", hidden, "state") + norm(hidden)
    found += matrix("altup_correct", streams, streams, role="state") + matrix(
        "altup_predict", streams**2, streams, role="state"
    )
    return found + matrix("altup_router", streams, hidden, role="router")


def gemma3n_outside(c: Reader) -> Parts:
    hidden, narrow, layers = c.hidden, c.number("hidden_size_per_layer_input"), c.layers
    rows = c.number("vocab_size_per_layer_input", otherwise=c.number("vocab_size"))
    found = matrix("embed_per_layer", rows, layers * narrow, role="embedding")
    found += matrix("per_layer_model_projection", layers * narrow, hidden) + norm(narrow)
    for _ in range(2 * (c.number("altup_num_inputs") - 1)):
        found += matrix("altup_projection", hidden, hidden)
    return found
