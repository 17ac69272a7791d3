#!/bin/sh
# Fills the volume of the model: a pod that mounts it for writing, tar through kubectl, and checksums of both sides.
#   ./fill-model.sh            with the folder that was measured
#   ./fill-model.sh FOLDER     with another copy of the same model
# KUBECTL names another kubectl, or one with a context: KUBECTL="kubectl --context prod" ./fill-model.sh
set -eu
# A folder that was named is looked for from where this was started.
[ $# -eq 0 ] || case $1 in
    /*) ;;
    *) set -- "$PWD/$1" ;;
esac
cd "$(dirname "$0")"
KUBECTL=${KUBECTL:-kubectl}
NAMESPACE={{ namespace|sh }}
POD={{ pod|sh }}
MODEL={{ contents[0][0]|sh }}
[ $# -eq 0 ] || MODEL=$1

fail() { printf 'error: %s\n' "$1" >&2; exit 1; }
kube() { $KUBECTL --namespace "$NAMESPACE" "$@"; }
inside() { kube exec --stdin "$POD" -- "$@"; }
sums() { find -L . -type f -exec sha256sum {} + | LC_ALL=C sort; }

copy() { # PLACE NAME: a folder or a file here, to that name in the volume; links are followed, as snapshots of a hub are made of them
    [ -e "$1" ] || fail "there is no $1: name a copy of the model, ./fill-model.sh FOLDER"
    if [ -d "$1" ]; then
        inside mkdir -p "/volume/$2"
        tar -C "$1" -chf - . | inside tar -C "/volume/$2" -xf - --no-same-owner
        here=$(cd -- "$1" && sums)
        there=$(inside sh -c "cd \"/volume/$2\" && find -L . -type f -exec sha256sum {} +" | LC_ALL=C sort)
    else
        inside sh -c "cat > \"/volume/$2\"" < "$1"
        here=$(sha256sum < "$1")
        there=$(inside sha256sum < /dev/null "/volume/$2" | sed 's| .*||; s|$|  -|')
    fi
    [ "$here" = "$there" ] || fail "what lies in the volume as $2 is not what lies here: run this again, or empty the volume"
}

$KUBECTL get namespace "$NAMESPACE" > /dev/null 2>&1 || $KUBECTL apply -f namespace.yaml
# Helm's own is left as it is: its release would not take one that somebody else had made.
kube get persistentvolumeclaim {{ claim|sh }} > /dev/null 2>&1 || kube apply -f persistentvolumeclaim.yaml
trap 'kube delete pod "$POD" --wait=false --ignore-not-found' EXIT INT TERM
kube apply -f model-loader.yaml
kube wait --for=condition=Ready "pod/$POD" --timeout=900s
copy "$MODEL" {{ contents[0][1]|sh }}
{% for place, name, _ in contents[1:] %}
copy {{ place|sh }} {{ name|sh }}
{% endfor %}
echo "the model is in the volume, byte by byte"
