#!/usr/bin/env bash
# What a newcomer waits for: a fresh clone, a new HOME, no caches, only the README's commands.
#   benchmarks/newcomer.sh [FOLDER]
# Writes the seconds of each step as JSON to standard output. Limits of the project on 2 cores:
# make demo 900 s with its set-up, llmopt demo 300 s of it, make test 900 s after set-up.
set -euo pipefail
source=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)
place=${1:-$(mktemp -d)}
mkdir -p "$place/home"
export HOME="$place/home" PIP_NO_CACHE_DIR=1
unset XDG_DATA_HOME XDG_CACHE_HOME LLMOPT_HOME VIRTUAL_ENV
git clone -q "$source" "$place/llmopt"
cd "$place/llmopt"

timed() { # NAME COMMAND…: run it, keep its output, remember its seconds
    local name=$1 start=$SECONDS
    shift
    "$@" >"$place/$name.out" 2>"$place/$name.err" || { tail -20 "$place/$name.err" "$place/$name.out" >&2; exit 1; }
    printf '"%s_s": %d' "$name" $((SECONDS - start))
}

printf '{"commit": "%s", "cores": %d, ' "$(git rev-parse --short HEAD)" "$(nproc)"
timed make_setup make setup
printf ', '
timed llmopt_demo make demo
printf ', '
timed llmopt_demo_rerun make demo
printf ', '
timed make_test make test
printf '}\n'
