#!/bin/sh
# Debian's nginx, Prometheus, Alertmanager and Redis, by which the tests check what `llmopt deploy` writes. Where they cannot be
# installed (no root, no apt-get, no network) that is said, and those tests are skipped by name. No service is started.
set -eu
packages="nginx-light prometheus prometheus-alertmanager redis-server"
missing=""
for package in $packages; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "not installed (needs root and apt-get):$missing" >&2
    exit 0
fi
# What Debian asks before a package starts its service; 101 is no.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
fi
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
# shellcheck disable=SC2086  # a list of words
{ apt-get update -q && apt-get install -q -y --no-install-recommends $missing; } || echo "not installed:$missing" >&2
