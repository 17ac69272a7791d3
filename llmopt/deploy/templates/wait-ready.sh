#!/bin/sh
# wait-ready.sh PORT: waits until the engine there has completed a token; systemd ends it, and the engine, after its time.
# A real completion, at the start alone: under full load it would queue behind users' and a good replica would be taken out.
cd -- "$(dirname -- "$0")" || exit 1
until curl -sf --noproxy '*' -o /dev/null -m 60 -H 'Content-Type: application/json' -d @completion.json \
  "http://127.0.0.1:$1/v1/completions"; do
  sleep 0.5
done
