"""Every architecture that ``estimate`` knows, beside what transformers builds from the same config (on the meta device)."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from llmopt.estimate.architectures import FAMILIES, shape_of

pytestmark = pytest.mark.engine
# What transformers' default configs lack, or cannot build by themselves (5.17).
MORE: dict[str, dict[str, Any]] = {
    "ministral": {"head_dim": 128, "num_key_value_heads": 8},
    "nemotron": {"head_dim": 128, "num_key_value_heads": 8},
    "hunyuan_v1_dense": {"head_dim": 128, "num_key_value_heads": 8},
    "glm4_moe": {"head_dim": 128},
    "dots1": {
        "n_routed_experts": 8, "n_shared_experts": 1, "num_key_value_heads": 8, "head_dim": 128, "moe_intermediate_size": 512,
    },
}  # fmt: skip
REMOTE = ("kimi_k2", "qwen", "internlm", "internlm2", "baichuan", "minicpm", "chatglm")
NOT_BUILT = {**dict.fromkeys(REMOTE, "remote code"), "dbrx": "its default config has no rope_theta in 5.17"}


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - set(NOT_BUILT)))
@pytest.mark.filterwarnings("ignore")
def test_parameters_are_those_of_transformers(name: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = transformers.AutoConfig.for_model(name, **MORE.get(name, {}))
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
    stored = model.state_dict().keys()
    built = sum(p.numel() for p in model.parameters())
    built += sum(b.numel() for key, b in model.named_buffers() if key in stored and "e_score" in key)
    assert shape_of(config.to_dict(), name).parameters == built
