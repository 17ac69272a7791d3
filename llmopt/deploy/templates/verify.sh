#!/bin/sh
# Measures what runs here with the workload that it was chosen by, and holds it to its SLOs and figures.
# Exit status: 0 it keeps them, 3 it does not, 4 cannot be told, 1 error.  Options are those of llmopt verify --help.
command -v llmopt >/dev/null || { echo "error: llmopt is not on the PATH (pip install llmopt)" >&2; exit 1; }
exec llmopt verify "$(dirname -- "$0")" "$@"
