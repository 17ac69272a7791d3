"""The model card beside the weights: what it is, how far from its base, from what, and the command that makes it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmopt.core.units import show

SERVE = {
    "gguf": "llama-server -m model.gguf",
    "in-memory": "llmopt bench . --backend hf",
}
BESIDE = ("torch", "transformers")


def card(document: dict[str, Any], command: str) -> str:
    """``document``: the manifest with ``quality`` (or ``None``); ``command`` makes the artifact anew. Markdown, ready to upload."""
    artifact, base = document["artifact"], document["base"]
    q = artifact["quantization"]
    name = base["name"]
    size = show(artifact["size_bytes"], "bytes") if artifact["size_bytes"] else "nothing on disk"
    lines = [
        "---",
        f"base_model: {name}",
        "library_name: " + ("llama.cpp" if q["format"] == "gguf" else "transformers"),
        "tags:",
        *(f"- {tag}" for tag in dict.fromkeys((q["method"], q["format"], q["name"], "llmopt"))),
        "---",
        "",
        f"# {name}, {q['name']}",
        "",
        f"{base['architecture']} with {base['parameters']:,} parameters, quantized with `{q['method']}` into the layout"
        f" `{q['format']}`: {size}, **{artifact['bits_per_weight']:.2f} bits per weight** in all"
        + (f", groups of {q['group_size']}." if q["group_size"] else "."),
        "",
        "## How far from its base",
        "",
        *quality_lines(document.get("quality")),
        "",
        "## How it was made",
        "",
        "```",
        command,
        "```",
        "",
        "| | |",
        "|---|---|",
        *(f"| {label} | {value} |" for label, value in facts(document)),
        "",
        f"Serve it: `{SERVE.get(q['format'], 'vllm serve .')}`. The whole record is `llmopt.json`.",
    ]
    return "\n".join(lines) + "\n"


def base_name(path: Path) -> str:
    """The folder's name; snapshots of a hub cache (``models--org--name/snapshots/…``) under their own."""
    hub = next((part for part in path.parts if part.startswith("models--")), None)
    return hub.removeprefix("models--").replace("--", "/") if hub else path.name


def quality_lines(quality: dict[str, Any] | None) -> list[str]:
    if quality is None:
        return ["It was not compared with its base."]
    kl, top1, ppl = quality["kl_mean_interval"], quality["top1_interval"], quality["perplexity_interval"]
    where = f", in {quality['engine']} {quality.get('engine_version') or ''}".rstrip() if quality.get("engine") else ""
    return [
        "| | value | 95 % interval |",
        "|---|---:|---:|",
        f"| mean KL divergence, nats | {quality['kl_mean']:.5f} | {kl[0]:.5f} to {kl[1]:.5f} |",
        f"| 99th percentile of KL, nats | {quality['kl_p99']:.4f} | |",
        f"| same most likely token | {quality['top1_agreement']:.2%} | {top1[0]:.2%} to {top1[1]:.2%} |",
        f"| perplexity | {quality['perplexity']:.3f} | {ppl[0]:.3f} to {ppl[1]:.3f} |",
        f"| perplexity of the base | {quality['base_perplexity']:.3f} | |",
        "",
        f"On {quality['tokens']:,} tokens of one text (sha256 `{quality['text_sha256'][:16]}…`), the same ids for both{where};"
        " intervals are paired bootstraps over windows.",
    ]


def without_place(value: Any) -> Any:
    """A file by its name alone: where it lay on the machine that made the artifact is nobody's business."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def facts(document: dict[str, Any]) -> list[tuple[str, str]]:
    found = [("base", f"`{document['base']['name']}`, fingerprint `{document['base']['fingerprint'][:16]}…`")]
    if settings := {k: without_place(v) for k, v in document["settings"].items() if v is not None}:
        found.append(("settings", ", ".join(f"{k} {v}" for k, v in settings.items())))
    if calibration := document.get("calibration"):
        source = without_place(calibration["source"])
        found.append(("calibration", f"{calibration['samples']} samples, {calibration['tokens']:,} tokens of `{source}`"
                      f" (sha256 `{calibration['text_sha256'][:16]}…`), seed {calibration['seed']}"))  # fmt: skip
        found += [("doubt", doubt) for doubt in calibration["doubts"]]
    library, versions = document["library"], document["versions"]
    layout = document["artifact"]["quantization"]["format"]
    beside = [n for n in (*BESIDE, layout) if n in versions and n != library["name"]]
    found.append(
        ("made with", ", ".join([f"{library['name']} {library['version']}", *(f"{n} {versions[n]}" for n in beside)]))
    )
    found.append(
        ("took", f"{document['seconds']:.0f} s, {show(document['peak_memory_bytes'], 'bytes')} of memory at the peak")
    )
    return found
