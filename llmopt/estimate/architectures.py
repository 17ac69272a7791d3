"""Which tensors a model of each type has: one line per ``model_type`` of config.json.

Defaults are those of transformers' config classes (5.17) for keys that published configs leave out; a number that decides
a size and has no default there must be in the file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from llmopt.core.errors import ModelError
from llmopt.core.kv_cache import is_attention, layer_kinds
from llmopt.estimate import mixers
from llmopt.estimate.blocks import PLAIN_MLP, Attention, Experts, Latent, Mlp, Parts, Truth, matrix, norm
from llmopt.estimate.checks import check_cache
from llmopt.estimate.nested import language_part
from llmopt.estimate.shape import BY_HAND, Reader, Shape, Tensor
from llmopt.estimate.towers import with_vision

PLAIN_ATTENTION = Attention()


@dataclass(frozen=True, kw_only=True)
class Family:
    """How the layers of a type are made.

    ``norms``: of the hidden width in each layer; ``mixer``: what stands in a layer that has no attention, ``beside``: what
    every layer has besides; ``alone``: a layer is one thing, a mixer or an MLP.  ``tied``: the default of
    ``tie_word_embeddings``; ``positions``: learned position embeddings, by the key of their number, and how many more.
    """

    attention: Attention | Latent = PLAIN_ATTENTION
    mlp: Mlp | Experts = PLAIN_MLP
    norms: int = 2
    norm_bias: bool = False
    mixer: Callable[[Reader, int], Parts] | None = None
    beside: Callable[[Reader, int], Parts] | None = None
    outside: Callable[[Reader], Parts] | None = None
    alone: bool = False
    tied: bool = False
    head_bias: Truth = False
    final_norm: Truth = True
    positions: tuple[str, int] | None = None
    defaults: dict[str, Any] = field(default_factory=dict)

    def shape(self, config: dict[str, Any], model_type: str, place: str) -> Shape:
        c = Reader(config=config, place=place, defaults=self.defaults)
        check_cache(c)
        tied = bool(self.tied if config.get("tie_word_embeddings") is None else config["tie_word_embeddings"])
        kinds = layer_kinds(self.defaults | {k: v for k, v in config.items() if v is not None}, c.layers)
        if kinds is None:
            raise ModelError(f"{place} has layers of a kind that is not known here", hint=BY_HAND)
        tensors = self.around(c, tied=tied)
        for layer, kind in enumerate(kinds):
            tensors += [replace(t, layer=layer) for t in self.layer(c, layer, kind)]
        shape = Shape(model_type=model_type, config=self.defaults | config, tensors=tuple(tensors), tied=tied)
        if shape.experts_per_token > shape.experts:
            raise ModelError(
                f"{place}: {shape.experts_per_token} of {shape.experts} experts, which no model has",
                hint="restore the file",
            )
        if shape.experts and not shape.told_experts:
            note = (
                "the config does not tell to how many experts a token goes: active parameters and speed are as with one"
            )
            return replace(shape, notes=(note,))
        return shape

    def around(self, c: Reader, *, tied: bool) -> list[Tensor]:
        vocabulary, hidden = c.number("padded_vocab_size", "vocab_size"), c.hidden
        width = c.number("word_embed_proj_dim", otherwise=hidden)
        found = matrix("embed", vocabulary, width, role="embedding")
        if not tied:
            found += matrix("head", vocabulary, width, role="head")
        found += [Tensor(part="head.bias", role="bias", rows=1, columns=vocabulary)] if c.flag(self.head_bias) else []
        if self.positions:
            found += matrix("position", c.number(self.positions[0]) + self.positions[1], hidden, role="position")
        found += norm(hidden, bias=self.norm_bias, part="final_norm") if c.flag(self.final_norm) else []
        return found + (self.outside(c) if self.outside else [])

    def layer(self, c: Reader, layer: int, kind: str) -> Parts:
        found = norm(c.hidden, bias=self.norm_bias, count=self.norms)
        if self.alone:
            return found + self.one_thing(c, layer, kind)
        if self.mixer is not None and not is_attention(kind):
            found += self.mixer(c, layer)
        else:
            found += self.attention.parts(c, layer)
        found += self.beside(c, layer) if self.beside else []
        return found + self.mlp.parts(c, layer)

    def one_thing(self, c: Reader, layer: int, kind: str) -> Parts:
        if is_attention(kind):
            return self.attention.parts(c, layer)
        if kind == "moe" or (kind == "mlp" and isinstance(self.mlp, Mlp)):
            return self.mlp.parts(c, layer)
        if kind == "mlp" and isinstance(self.mlp, Experts):
            return self.mlp.dense.parts(c, layer)
        return self.mixer(c, layer) if self.mixer else []


PLAIN = Family()
PER_HEAD = Attention(qkv_bias="attention_bias", o_bias="attention_bias", qk_norm="head")
ALL_BIASED = Attention(qkv_bias=True, o_bias=True)
WITH_KEY = Attention(qkv_bias="attention_bias", o_bias="attention_bias")
FUSED_BIASED = Attention(qkv_bias=True, o_bias=True, fused=True)
LLAMA = Family(attention=WITH_KEY, mlp=Mlp(bias="mlp_bias"))
GEMMA = Family(attention=WITH_KEY, tied=True, defaults={"head_dim": 256})
GEMMA_SHARED: dict[str, Any] = {"head_dim": 256, "sliding_window": 4096}
QWEN_MOE = Experts(only_dense="mlp_only_layers", every="decoder_sparse_step")
DEEPSEEK = Experts(
    shared="count", correction=True, first_dense="first_k_dense_replace", inner=("moe_intermediate_size",),
)  # fmt: skip
TWO_MATRICES = Mlp(bias=True, gated=False, four_times=True)
GPT = Family(attention=FUSED_BIASED, mlp=TWO_MATRICES, norm_bias=True, tied=True)
GRANITE_MOE = Experts(inner=("intermediate_size",), count=("num_local_experts",), shared="shared_intermediate_size")

FAMILIES: dict[str, Family] = {
    "llama": LLAMA,
    "mistral": PLAIN,
    "ministral": PLAIN,
    "ministral3": PLAIN,
    "smollm3": LLAMA,
    "arcee": replace(LLAMA, mlp=Mlp(bias="mlp_bias", gated=False)),
    "seed_oss": replace(LLAMA, attention=Attention(qkv_bias="attention_bias", o_bias="attention_out_bias")),
    "granite": LLAMA,
    "helium": LLAMA,
    "ernie4_5": Family(attention=Attention(qkv_bias="use_bias", o_bias="use_bias"), mlp=Mlp(bias="use_bias"), tied=True),
    "nemotron": Family(attention=WITH_KEY, mlp=Mlp(bias="mlp_bias", gated=False), norm_bias=True),
    "mixtral": Family(mlp=Experts(inner=("intermediate_size",), count=("num_local_experts",))),
    "qwen2": Family(attention=Attention(qkv_bias=True)),
    "qwen3": Family(attention=PER_HEAD, defaults={"head_dim": 128}),
    "qwen2_moe": Family(
        attention=Attention(qkv_bias="qkv_bias"),
        mlp=replace(QWEN_MOE, shared="shared_expert_intermediate_size", shared_gate=True),
        defaults={"qkv_bias": True},
    ),
    "qwen3_moe": Family(attention=PER_HEAD, mlp=QWEN_MOE),
    "qwen3_next": Family(
        attention=replace(PER_HEAD, gated=True),
        mlp=replace(QWEN_MOE, shared="shared_expert_intermediate_size", shared_gate=True),
        mixer=mixers.delta_net,
    ),
    "qwen3_5_text": Family(
        attention=replace(PER_HEAD, gated=True), mixer=mixers.split_delta_net,
    ),
    "qwen3_5_moe_text": Family(
        attention=replace(PER_HEAD, gated=True),
        mlp=Experts(shared="shared_expert_intermediate_size", shared_gate=True),
        mixer=mixers.split_delta_net,
    ),
    "gemma": GEMMA,
    "gemma2": replace(GEMMA, norms=4, defaults=GEMMA_SHARED),
    "gemma3_text": replace(
        GEMMA, norms=4, attention=PER_HEAD,
        # Published configs of the larger ones leave out what they share with the 4B, transformers' default.
        defaults={
            "head_dim": 256, "sliding_window": 4096, "vocab_size": 262208, "hidden_size": 2304,
            "num_attention_heads": 8, "num_key_value_heads": 4, "num_hidden_layers": 26, "intermediate_size": 9216,
        },
    ),
    "gemma3n_text": replace(
        GEMMA, norms=4, attention=mixers.Gemma3nAttention(qk_norm="head"),
        beside=mixers.gemma3n_layer, outside=mixers.gemma3n_outside,
    ),
    "phi": Family(
        attention=Attention(qkv_bias=True, o_bias=True, qk_norm="head", qk_norm_if="qk_layernorm"),
        mlp=replace(TWO_MATRICES, four_times=False), norms=1, norm_bias=True, head_bias=True,
    ),
    "phi3": Family(attention=Attention(fused=True), mlp=Mlp(fused=True)),
    "phimoe": Family(
        attention=WITH_KEY, norm_bias=True, head_bias="lm_head_bias",
        mlp=Experts(inner=("intermediate_size",), count=("num_local_experts",)),
    ),
    "stablelm": Family(
        attention=Attention(qkv_bias="use_qkv_bias", qk_norm="heads", qk_norm_if="qk_layernorm"),
        norm_bias=True, norms=0, beside=mixers.stablelm_norms,
    ),
    "starcoder2": Family(
        attention=Attention(qkv_bias="use_bias", o_bias="use_bias"), mlp=Mlp(bias="use_bias", gated=False),
        norm_bias=True, tied=True, defaults={"use_bias": True},
    ),
    "olmo": Family(attention=WITH_KEY, norms=0, final_norm=False),
    "olmo2": Family(attention=replace(WITH_KEY, qk_norm="full")),
    "olmo3": Family(attention=replace(WITH_KEY, qk_norm="full")),
    "olmoe": Family(attention=replace(WITH_KEY, qk_norm="full"), mlp=Experts(inner=("intermediate_size",))),
    "cohere": Family(
        attention=replace(WITH_KEY, qk_norm="heads", qk_norm_if="use_qk_norm"), norms=1, tied=True,
    ),
    "cohere2": Family(attention=WITH_KEY, norms=1, tied=True),
    "exaone4": Family(attention=Attention(qk_norm="head")),
    "hunyuan_v1_dense": Family(attention=PER_HEAD, mlp=Mlp(bias="mlp_bias")),
    "glm": Family(attention=Attention(qkv_bias="attention_bias"), mlp=Mlp(fused=True), defaults={"attention_bias": True, "head_dim": 128}),
    "glm4": Family(
        attention=Attention(qkv_bias="attention_bias"), mlp=Mlp(fused=True), norms=4,
        defaults={"attention_bias": True, "head_dim": 128},
    ),
    "glm4_moe": Family(
        attention=Attention(qkv_bias="attention_bias", qk_norm="head", qk_norm_if="use_qk_norm"), mlp=DEEPSEEK,
    ),
    "dots1": Family(attention=PER_HEAD, mlp=DEEPSEEK),
    "ernie4_5_moe": Family(
        attention=Attention(qkv_bias="use_bias", o_bias="use_bias"), tied=True,
        mlp=mixers.ErnieExperts(shared="count", correction=True, dense=Mlp(bias="use_bias")),
    ),
    "granitemoe": Family(attention=WITH_KEY, mlp=replace(GRANITE_MOE, shared="")),
    "granitemoeshared": Family(attention=WITH_KEY, mlp=GRANITE_MOE),
    "granitemoehybrid": Family(
        attention=WITH_KEY, mixer=mixers.granite,
        mlp=mixers.GraniteHybridMlp(inner=("intermediate_size",), count=("num_local_experts",)),
    ),
    "gpt_oss": Family(
        attention=Attention(qkv_bias=True, o_bias=True, sinks=True), defaults={"head_dim": 64},
        mlp=Experts(inner=("intermediate_size",), count=("num_local_experts",), bias=True, router_bias=True),
    ),
    "minimax": Family(mlp=Experts(inner=("intermediate_size",), count=("num_local_experts",)), mixer=mixers.lightning),
    "minimax_m2": Family(
        attention=Attention(qk_norm="full"),
        mlp=Experts(inner=("intermediate_size",), count=("num_local_experts",), correction=True),
    ),
    "llama4_text": Family(attention=WITH_KEY, mlp=mixers.Llama4Experts(
            inner=("intermediate_size",), count=("num_local_experts",), shared="intermediate_size",
            dense=Mlp(width=("intermediate_size_mlp",)),
        ), defaults={"head_dim": 128, "interleave_moe_layer_step": 1}),
    "deepseek_v2": Family(attention=Latent(), mlp=replace(DEEPSEEK, correction=False)),
    "deepseek_v3": Family(attention=Latent(), mlp=DEEPSEEK),
    "kimi_k2": Family(attention=Latent(), mlp=DEEPSEEK),
    "dbrx": Family(mlp=mixers.DbrxExperts(), attention=mixers.DbrxAttention(fused=True)),
    "jamba": Family(mlp=mixers.JambaMlp(inner=("intermediate_size",)), mixer=mixers.jamba),
    "bamba": Family(attention=WITH_KEY, mlp=Mlp(bias="mlp_bias"), mixer=mixers.bamba),
    "falcon_h1": Family(attention=WITH_KEY, mlp=Mlp(bias="mlp_bias"), beside=mixers.falcon_h1),
    "nemotron_h": Family(
        attention=Attention(), mixer=mixers.nemotron, alone=True, norms=1, mlp=mixers.NemotronExperts(dense=Mlp(gated=False, bias="mlp_bias")),
    ),
    "lfm2": Family(attention=Attention(qk_norm="head"), mixer=mixers.short_conv, mlp=mixers.Lfm2Mlp(), tied=True),
    "mamba": Family(mixer=mixers.mamba, alone=True, norms=1, tied=True),
    "falcon_mamba": Family(mixer=mixers.mamba, alone=True, norms=1, tied=True),
    "mamba2": Family(mixer=mixers.mamba2, alone=True, norms=1),
    "gpt2": replace(GPT, positions=("n_positions", 0)),
    "gpt_bigcode": replace(GPT, positions=("n_positions", 0)),
    "gptj": Family(
        mlp=TWO_MATRICES, norms=1, norm_bias=True, head_bias=True,
    ),
    "gpt_neo": replace(
        GPT, attention=Attention(o_bias=True), positions=("max_position_embeddings", 0),
    ),
    "gpt_neox": replace(
        GPT, tied=False, attention=replace(FUSED_BIASED, qkv_bias="attention_bias", o_bias="attention_bias"),
        defaults={"attention_bias": True},
    ),
    "opt": Family(
        attention=Attention(qkv_bias="enable_bias", o_bias="enable_bias"), norm_bias=True, tied=True,
        mlp=Mlp(width=("ffn_dim",), bias="enable_bias", gated=False), positions=("max_position_embeddings", 2),
        outside=mixers.opt_projections, defaults={"enable_bias": True},
    ),
    "bloom": replace(GPT, outside=mixers.bloom_norm),
    "mpt": replace(GPT, attention=Attention(fused=True), mlp=mixers.MptMlp(gated=False), norm_bias=False),
    # Of remote code, as their repositories have it.
    "qwen": Family(attention=Attention(qkv_bias=True, fused=True), mlp=mixers.HalvedMlp()),
    "internlm": Family(attention=Attention(qkv_bias="bias", o_bias="bias")),
    "internlm2": Family(attention=Attention(fused=True, qkv_bias="bias", o_bias="bias")),
    "baichuan": Family(attention=Attention(fused=True)),
    "minicpm": Family(attention=WITH_KEY, tied=True),
    "chatglm": Family(
        attention=Attention(fused=True, qkv_bias="add_qkv_bias"), mlp=Mlp(width=("ffn_hidden_size",), fused=True),
        defaults={"add_qkv_bias": True},
    ),
    "falcon": Family(
        attention=Attention(fused=True, qkv_bias="bias", o_bias="bias"),
        mlp=Mlp(width=("ffn_hidden_size",), gated=False, four_times=True, bias="bias"),
        norms=0, beside=mixers.falcon_norms, norm_bias=True, tied=True,
        defaults={"multi_query": True, "parallel_attn": True},
    ),
}  # fmt: skip
# Types under other names: of remote code whose layers are those of a known type, and parts of multimodal ones.
SAME = {
    "internlm3": "llama", "yi": "llama", "deepseek_v32": "deepseek_v3", "qwen2_vl": "qwen2", "qwen2_5_vl": "qwen2",
    "qwen2_vl_text": "qwen2", "qwen2_5_vl_text": "qwen2", "qwen3_vl_text": "qwen3", "qwen3_vl_moe_text": "qwen3_moe",
    "gemma3": "gemma3_text", "gemma3n": "gemma3n_text", "llama4": "llama4_text", "mistral3": "mistral",
    "qwen3_5": "qwen3_5_text", "qwen3_5_moe": "qwen3_5_moe_text", "shieldgemma2": "gemma3_text", "llava": "llama",
}  # fmt: skip


def is_known(model_type: str) -> bool:
    return SAME.get(model_type, model_type) in FAMILIES


def shape_of(config: dict[str, Any], place: str) -> Shape:
    """The tensors that the config describes. Raises ModelError for a type that is not known here, or odd numbers."""
    inner, model_type = language_part(config, place)
    family = FAMILIES.get(SAME.get(model_type, model_type))
    if family is None:
        raise ModelError(
            f"{place}: the architecture {model_type!r} is not known here",
            hint=BY_HAND,
        )
    return with_vision(family.shape(inner, model_type, place), config)
