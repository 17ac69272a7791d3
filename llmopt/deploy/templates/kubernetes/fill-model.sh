#!/bin/sh
# Fills the volume of the model: a pod that mounts it for writing, tar through kubectl, and checksums of both sides.
#   ./fill-model.sh            with the folder that was measured
#   ./fill-model.sh FOLDER     with another copy of the same model
# IMAGE names the address in your registry of the engine's image, where it was built here.
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
CLAIM={{ claim|sh }}
MODEL={{ contents[0][0]|sh }}
[ $# -eq 0 ] || MODEL=$1

fail() { printf 'error: %s\n' "$1" >&2; exit 1; }
kube() { $KUBECTL --namespace "$NAMESPACE" "$@"; }
inside() { kube exec --stdin "$POD" -- "$@"; }
# Of a folder's files, or of a file; nothing where nothing is.
SUMS='cd -- "$1" 2>/dev/null && { find -L . -type f -exec sha256sum {} + | LC_ALL=C sort; exit; }; [ ! -e "$1" ] || sha256sum < "$1"'
here() { sh -c "$SUMS" - "$1"; }
there() { inside sh -c "$SUMS" - "/volume/$1" < /dev/null; }

copy() { # PLACE NAME: a folder or a file here, to that name in the volume; links are followed, as snapshots of a hub are made of them
    [ -e "$1" ] || fail "there is no $1: name a copy of the model, ./fill-model.sh FOLDER"
    wanted=$(here "$1")
    [ -n "$wanted" ] || fail "there is no file in $1: name a copy of the model, ./fill-model.sh FOLDER"
    [ "$(there "$2")" != "$wanted" ] || return 0
    # Beside its place until it is whole: engines that wait for the place itself start with all of it.
    inside rm -rf "/volume/$2.partial" < /dev/null
    if [ -d "$1" ]; then
        inside mkdir "/volume/$2.partial" < /dev/null
        tar -C "$1" -chf - . | inside tar -C "/volume/$2.partial" -xf - --no-same-owner
    else
        inside sh -c 'cat > "$1"' - "/volume/$2.partial" < "$1"
    fi
    [ "$(there "$2.partial")" = "$wanted" ] || fail "what came into the volume as $2 is not what lies here: run this again"
    # What lay there under the name of these very weights was damaged, or a copy with other files beside them.
    inside sh -c 'rm -rf "$1" && mv "$1.partial" "$1"' - "/volume/$2" < /dev/null
}

$KUBECTL get namespace "$NAMESPACE" > /dev/null 2>&1 || $KUBECTL apply -f namespace.yaml
# Helm's own is left as it is: its release would not take one that somebody else had made.
kube get persistentvolumeclaim "$CLAIM" > /dev/null 2>&1 || kube apply -f persistentvolumeclaim.yaml
trap 'kube delete pod "$POD" --wait=false --ignore-not-found' EXIT INT TERM
# One that an earlier run left is of its image and its volume for ever.
kube delete pod "$POD" --ignore-not-found
if [ -n "${IMAGE:-}" ]; then
    kube set image --local -f model-loader.yaml "loader=$IMAGE" -o yaml | kube apply -f -
else
    kube apply -f model-loader.yaml
fi
kube wait --for=condition=Ready "pod/$POD" --timeout=900s
copy "$MODEL" {{ contents[0][1]|sh }}
{% for place, name, _ in contents[1:] %}
copy {{ place|sh }} {{ name|sh }}
{% endfor %}
echo "the model is in the volume $CLAIM, byte by byte"
echo "others, which a rollback may want: kubectl --namespace $NAMESPACE get persistentvolumeclaims; delete those that none does"
