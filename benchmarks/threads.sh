#!/usr/bin/env bash
# How many computing threads an engine should have on the machine that also runs the client: all cores, or all but one?
#   benchmarks/threads.sh ROUNDS ARTIFACT…      (an artifact folder, or "demo"; needs the local environment)
# Alternates between the two in the same session and prints one Markdown row a run.
set -euo pipefail
rounds=$1
shift
results=$(mktemp -d)
cores=$(nproc)
echo '| artifact | engine threads | output tok/s | TPS p50 | TTFT p50 ms | verdict |'
echo '|---|---:|---:|---:|---:|---|'
for _ in $(seq "$rounds"); do
    for artifact in "$@"; do
        for threads in "$cores" $((cores - 1)); do
            llmopt bench "$artifact" --threads "$threads" --results "$results" --json 2>/dev/null | python3 -c "
import json, sys
run = json.load(sys.stdin)
m, case = run['metrics'], f\"{run['artifact']['quantization']} on {run['serve']['backend']}\"
print(f\"| {case} | $threads | {m['output_tps']:.0f} | {m['tps']['p50']:.1f} | {m['ttft_s']['p50'] * 1e3:.1f} | {run['verdict']['status']} |\")"
        done
    done
done
rm -rf "$results"
