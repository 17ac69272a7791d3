"""What the server said of a run, in plain lines: its own times, its caches, its memory, its energy."""

from __future__ import annotations

from typing import Any

from llmopt.core.units import show

TIMES = (("queue", "server_queue_s"), ("prefill", "server_prefill_s"), ("decode", "server_decode_s"))
PARTS = (
    ("weights", "weights_bytes"),
    ("KV cache", "kv_cache_bytes"),
    ("activations", "activation_bytes"),
    ("held before", "rest_bytes"),
)
LABEL, WIDTH = 16, 100
WORTH_A_WORD = 0.01  # of the sampled memory
Note = tuple[str, list[str], str]  # label, words, what stands between them


def server_notes(record: dict[str, Any]) -> list[str]:
    """Ready lines; nothing about what is unknown."""
    notes = [*engine(record), *clocks(record), *caches(record), *memory(record), *energy(record), *symptoms(record)]
    return [line for note in notes for line in wrapped(*note)]


def wrapped(label: str, words: list[str], between: str) -> list[str]:
    """One line, or more where it would be too wide; a figure stays with its unit."""
    lines, start = [f"{label:<{LABEL}}{words[0]}"], " " * LABEL
    for word in words[1:]:
        if len(lines[-1] + between + word) <= WIDTH:
            lines[-1] += between + word
        else:
            lines[-1] += between.rstrip()
            lines.append(start + word)
    return lines


def engine(record: dict[str, Any]) -> list[Note]:
    """What answered behind an address, and what told so."""
    backend = record.get("backend") or {}
    if not backend.get("engine"):
        return []
    name = f"{backend['engine']} {backend['version']}" if backend.get("version") else backend["engine"]
    return [("engine there", [name, f"({'; '.join(backend['evidence'])})"], " ")]


def symptoms(record: dict[str, Any]) -> list[Note]:
    found = (record.get("telemetry") or {}).get("symptoms") or []
    return [("why it is slow", f"{one['cause']}; {one['remedy']}".split(), " ") for one in found]


def clocks(record: dict[str, Any]) -> list[Note]:
    """Both clocks beside each other, then where the time went; means over the same requests."""
    server = record.get("server") or {}
    agreement = server.get("agreement") or {}
    words = []
    for title, name in (("TTFT", "ttft"), ("ITL", "itl")):
        both, alone = agreement.get(name) or {}, server.get(f"server_{name}_s")
        if both.get("server_s") is not None:
            words.append(f"{title} {show(both['server_s'], 's')} (client {show(both['client_s'], 's')})")
        elif alone:
            words.append(f"{title} {show(alone['mean'], 's')} (not compared: {both.get('why')})")
    words += [f"{title} {show(server[name]['mean'], 's')}" for title, name in TIMES if server.get(name)]
    count = server.get("requests") or max((server[name]["n"] for _, name in TIMES if server.get(name)), default=None)
    note = ("server's clock", [*words, f"means of {count} requests" if count else "means"], ", ")
    return [note] if words else []


def caches(record: dict[str, Any]) -> list[Note]:
    server, metrics, telemetry = (record.get(part) or {} for part in ("server", "metrics", "telemetry"))
    words = []
    if server.get("cache_hit_rate") is not None:
        words.append(f"{show(server['cache_hit_rate'], 'share')} of prompt tokens from the prefix cache")
    if server.get("preemptions") is not None:
        words.append(f"{server['preemptions']:.0f} preemptions")
    if metrics.get("kv_usage_peak") is not None:
        words.append(f"KV cache at most {show(metrics['kv_usage_peak'], 'share')} full")
    if telemetry.get("peak_running") is not None:
        waiting = telemetry.get("peak_waiting")
        words.append(
            f"at most {telemetry['peak_running']:.0f} running"
            + (f", {waiting:.0f} waiting" if waiting is not None else "")
        )
    return [("server's queue", words, ", ")] if words else []


def memory(record: dict[str, Any]) -> list[Note]:
    """The sampled total and its parts by the engine's word, what is left over, and what the KV cache holds."""
    split = record.get("memory") or {}
    parts = [f"{title} {show(split[name], 'bytes')}" for title, name in PARTS if split.get(name) is not None]
    if not parts:
        return []
    if split.get("kv_cache_used_bytes") is not None:
        parts = [
            p + f" ({show(split['kv_cache_used_bytes'], 'bytes')} used)" if p.startswith("KV") else p for p in parts
        ]
    whole = f"{show(split['total_bytes'], 'bytes')} {split['total_is']} sampled: " if split.get("total_bytes") else ""
    rest = split.get("unexplained_bytes")
    if rest is not None and abs(rest) > WORTH_A_WORD * split["total_bytes"]:
        parts.append(
            f"unexplained {show(abs(rest), 'bytes')}" if rest >= 0 else f"{show(-rest, 'bytes')} more than sampled"
        )
    lines: list[Note] = [("memory", [whole + parts[0], *parts[1:]], " + ")]
    if split.get("kv_capacity_tokens") is not None:
        many = split.get("max_concurrency")
        room = f", {many:.1f} sequences of the whole context" if many is not None else ""
        lines.append(("KV capacity", [f"{split['kv_capacity_tokens']:,} tokens{room}"], ""))
    return lines


def energy(record: dict[str, Any]) -> list[Note]:
    metrics, telemetry = record.get("metrics") or {}, record.get("telemetry") or {}
    words = []
    if metrics.get("energy_j") is not None:
        words.append(show(metrics["energy_j"], "joule"))
    if metrics.get("energy_per_token_j") is not None:
        words.append(f"{show(metrics['energy_per_token_j'], 'joule')} a token")
    if metrics.get("power_w") is not None:
        words.append(f"{show(metrics['power_w'], 'watt')} on average")
    if metrics.get("gpu_util") is not None:
        words.append(f"{show(metrics['gpu_util'], 'share')} busy")
    held = [
        f"{word.replace('_', ' ')} {show(s, 'share')} of the time"
        for word, s in (telemetry.get("clock_reasons") or {}).items()
    ]
    return [("GPU", [*words, *held], ", ")] if words else []
