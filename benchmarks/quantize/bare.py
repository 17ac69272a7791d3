"""Each quantization by its library alone, as the library's own README does it; no llmopt here.

python bare.py CASE MODEL OUT SAMPLES_JSON

Runs one case in this process and prints one line of JSON: ``startup_s`` until the library is imported, ``wall_s`` from the
start of the process until the files are written.  SAMPLES_JSON holds ``{"input_ids": [[…], …]}``.  The one thing that is
not of a README is what a machine without a GPU needs, named where it stands.
"""

from __future__ import annotations

import time

STARTED = time.monotonic()  # before anything heavy is imported

import contextlib  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

Ids = list[list[int]]
Function = Callable[[str, str, Ids], float]


@dataclass(frozen=True)
class Case:
    """``quant`` and ``layout`` are what llmopt is asked for; cases of one ``group`` compete: same bits, same method."""

    group: str
    quant: str
    library: str
    function: Function
    layout: str = ""


def rows(samples: Ids) -> list[dict[str, list[int]]]:
    return [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in samples]


# --- llm-compressor -------------------------------------------------------------------------------------------------


def llmcompressor(make_recipe: Callable[[], Any], calibrated: bool = True) -> Function:
    def function(model: str, out: str, samples: Ids) -> float:
        import torch
        from datasets import Dataset
        from llmcompressor import oneshot
        from transformers import AutoModelForCausalLM

        recipe = make_recipe()
        imported = time.monotonic()
        if not torch.cuda.is_available():  # 0.14 pins memory for an accelerator that is not there, and AWQ dies of it
            torch.Tensor.pin_memory = lambda self, *_, **__: self
        network = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
        longest = max(map(len, samples), default=0)
        data = {
            "dataset": Dataset.from_list(rows(samples)),
            "max_seq_length": longest,
            "num_calibration_samples": len(samples),
            "shuffle_calibration_samples": False,
        }
        oneshot(model=network, recipe=recipe, **(data if calibrated else {}))
        network.save_pretrained(out, save_compressed=True)
        return imported

    return function


def gptq_recipe(scheme: str | None, **weights: Any) -> Callable[[], Any]:
    def recipe() -> Any:
        from llmcompressor.modifiers.gptq import GPTQModifier

        if scheme:
            return GPTQModifier(targets="Linear", scheme=scheme, ignore=["lm_head"])
        groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
        return GPTQModifier(config_groups=groups, ignore=["lm_head"])

    return recipe


def awq_recipe() -> Any:
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    return [AWQModifier(), QuantizationModifier(targets=["Linear"], scheme="W4A16_ASYM", ignore=["lm_head"])]


def rounding_recipe(scheme: str) -> Callable[[], Any]:
    def recipe() -> Any:
        from llmcompressor.modifiers.quantization import QuantizationModifier

        return QuantizationModifier(targets="Linear", scheme=scheme, ignore=["lm_head"])

    return recipe


# --- gptqmodel ------------------------------------------------------------------------------------------------------


def gptqmodel(bits: int, group_size: int, awq: bool = False) -> Function:
    def function(model: str, out: str, samples: Ids) -> float:
        os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # on two cores its default waits for itself for ever
        import torch
        from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

        imported = time.monotonic()
        method = {"method": "awq", "format": "gemm", "sym": False} if awq else {}
        network = GPTQModel.load(model, QuantizeConfig(bits=bits, group_size=group_size, **method))
        # Its default kernel for AWQ is of CUDA.
        backend = {"backend": BACKEND.AWQ_TORCH} if awq and not torch.cuda.is_available() else {}
        network.quantize(rows(samples), batch_size=1, **backend)
        network.save(out)
        return imported

    return function


# --- the others -----------------------------------------------------------------------------------------------------


def autoround(layout: str) -> Function:
    def function(model: str, out: str, samples: Ids) -> float:
        import torch
        from auto_round import AutoRound

        imported = time.monotonic()
        tensors = [{name: torch.tensor(value) for name, value in row.items()} for row in rows(samples)]
        # "Faster quantization with slight accuracy drop" of its README, the setting that llmopt takes too.
        rounding = AutoRound(
            model, scheme="W4A16", iters=50, lr=5e-3, nsamples=len(samples), seqlen=len(samples[0]),
            dataset=torch.utils.data.DataLoader(tensors, batch_size=8), device_map="cpu",
            seed=0,  # llmopt's; the library's own 42 gives another rounding of the same quality (README.md)
        )  # fmt: skip
        rounding.quantize_and_save(output_dir=out, format=layout)
        return imported

    return function


def bitsandbytes(**options: Any) -> Function:
    def function(model: str, out: str, samples: Ids) -> float:
        import bitsandbytes  # noqa: F401
        import torch
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        imported = time.monotonic()
        four = {"bnb_4bit_compute_dtype": torch.bfloat16} if "load_in_4bit" in options else {}
        config = BitsAndBytesConfig(**options, **four)
        network = AutoModelForCausalLM.from_pretrained(model, dtype="auto", quantization_config=config)
        network.save_pretrained(out)
        return imported

    return function


def gguf(kind: str) -> Function:
    """llama.cpp's converter and its llama-quantize, the road of its README; the programs of the same environment as llmopt's."""

    def function(model: str, out: str, samples: Ids) -> float:
        import runpy
        import subprocess

        from llmopt.core.environments import CONVERTER_FOLDER, tool  # where they lie, nothing else

        folder, program = Path(sys.prefix) / CONVERTER_FOLDER, tool("llama-quantize")
        if program is None:
            raise SystemExit("llama-quantize is not here: llmopt env create llamacpp --build")
        sys.path.insert(0, str(folder))
        from conversion.base import TextModel

        imported = time.monotonic()
        # It refuses a tokenizer whose hash it does not know; who has such a one edits this function.
        TextModel.get_vocab_base_pre = lambda *_: "qwen2"
        Path(out).mkdir()
        sys.argv = ["convert_hf_to_gguf.py", model, "--outfile", f"{out}/base.gguf", "--outtype", "bf16"]
        with contextlib.suppress(SystemExit):
            runpy.run_path(str(folder / "convert_hf_to_gguf.py"), run_name="__main__")
        subprocess.run([str(program), f"{out}/base.gguf", f"{out}/model.gguf", kind], check=True)
        Path(out, "base.gguf").unlink()
        return imported

    return function


def dynamic(model: str, out: str, samples: Ids) -> float:
    """torch's tutorial: every linear layer, in memory, run once."""
    import torch
    from transformers import AutoModelForCausalLM

    imported = time.monotonic()
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    quantized = torch.ao.quantization.quantize_dynamic(network, {torch.nn.Linear}, dtype=torch.qint8)
    with torch.inference_mode():
        quantized(torch.tensor([[0, 1, 2, 3]]))
    Path(out).mkdir()
    return imported


G32 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}

CASES: dict[str, Case] = {
    f"{c.quant}{'/' + c.layout if c.layout else ''}": c
    for c in (
        Case("gptq-int4-g128", "gptq-int4-g128", "llmcompressor", llmcompressor(gptq_recipe("W4A16"))),
        Case("gptq-int4-g128", "gptq-int4-g128", "gptqmodel", gptqmodel(4, 128), "gptq"),
        Case("gptq-int4-g32", "gptq-int4-g32", "llmcompressor", llmcompressor(gptq_recipe(None, **G32))),
        Case("gptq-int8", "gptq-int8", "llmcompressor", llmcompressor(gptq_recipe("W8A16"))),
        Case("gptq-int8", "gptq-int8", "gptqmodel", gptqmodel(8, 128), "gptq"),
        Case("awq-int4-g128", "awq-int4-g128", "llmcompressor", llmcompressor(awq_recipe)),
        Case("awq-int4-g128", "awq-int4-g128", "gptqmodel", gptqmodel(4, 128, awq=True), "awq"),
        Case("autoround-int4", "autoround-int4", "auto-round", autoround("auto_round")),
        Case("w4a16", "w4a16", "llmcompressor", llmcompressor(rounding_recipe("W4A16"), calibrated=False)),
        Case("w8a8-int8", "w8a8-int8", "llmcompressor", llmcompressor(gptq_recipe("W8A8"))),
        Case("fp8", "fp8", "llmcompressor", llmcompressor(rounding_recipe("FP8_DYNAMIC"), calibrated=False)),
        Case("nf4", "nf4", "bitsandbytes", bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4")),
        Case(
            "nf4-dq", "nf4-dq", "bitsandbytes",
            bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
        ),
        Case("int8", "int8", "bitsandbytes", bitsandbytes(load_in_8bit=True)),
        Case("dynamic-int8", "dynamic-int8", "torch", dynamic),
        Case("gguf-q8_0", "gguf-q8_0", "llama.cpp", gguf("Q8_0")),
        Case("gguf-q4_k_m", "gguf-q4_k_m", "llama.cpp", gguf("Q4_K_M")),
    )
}  # fmt: skip


def main() -> None:
    name, model, out, samples = sys.argv[1:]
    imported = CASES[name].function(model, out, json.loads(Path(samples).read_text())["input_ids"])
    print(json.dumps({"startup_s": imported - STARTED, "wall_s": time.monotonic() - STARTED}), flush=True)
    os._exit(0)  # as llmopt's worker does: pools that these libraries leave behind may hang at exit


if __name__ == "__main__":
    main()
