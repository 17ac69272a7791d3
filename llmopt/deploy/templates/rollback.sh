#!/bin/sh
# Puts the former configuration, which lies in previous/, back in place.  What is here now becomes previous/, so that running
# this again undoes it.  It changes files alone: start the stack anew afterwards (README.md says how).
set -eu
[ $# -eq 0 ] || { echo "usage: ./rollback.sh" >&2; exit 2; }
cd -- "$(dirname -- "$0")"
# What stops all of this configuration, from this folder, whichever configuration lies in it.
STOP={{ stop | sh }}
# Files of this configuration; all else is yours.
ours() {
  case $1 in
{% for path in paths %}
    {{ path | sh }}) return 0 ;;
{% endfor %}
  esac
  return 1
}
if [ -e .rollback ]; then
  echo "error: .rollback is there: an earlier rollback was cut short; move its files back, then remove it" >&2
  exit 1
fi
if [ ! -f previous/deployment.json ]; then
  echo "error: there is no previous/deployment.json, so there is nothing to roll back to" >&2
  exit 1
fi
wanted=$(sed -n '/^  "files": {$/,/^  }/s/^    "\([^"]*\)": "[0-9a-f]*",\{0,1\}$/\1/p' previous/deployment.json)
missing=$(echo "$wanted" | while read -r path; do [ -f "previous/$path" ] || echo "$path"; done)
if [ -n "$missing" ] || [ -z "$wanted" ]; then
  echo "error: the former configuration is not whole, and nothing was changed; previous/ lacks:" >&2
  echo "${missing:-the names of its files in deployment.json}" >&2
  echo "hint: put them there, as previous/FILE, then ./rollback.sh again; or write that configuration anew: llmopt deploy" >&2
  exit 1
fi
yours=$(cd previous && find . ! -type d | while IFS= read -r path; do
  path=${path#./}
  if { [ -e "../$path" ] || [ -L "../$path" ]; } && ! ours "$path"; then echo "$path"; fi
  folder=$(dirname -- "$path")  # where a file of yours, or a link, has its name
  while [ "$folder" != . ]; do
    if { [ -L "../$folder" ] || [ -f "../$folder" ]; } && ! ours "$folder"; then echo "$folder"; fi
    folder=$(dirname -- "$folder")
  done
done)
if [ -n "$yours" ]; then
  echo "error: these are not of the configuration here, and those of previous/ would overwrite them; nothing was changed:" >&2
  echo "$yours" >&2
  echo "hint: move them elsewhere, then ./rollback.sh again" >&2
  exit 1
fi
others=
[ "$(grep '^STOP=' rollback.sh)" = "$(grep '^STOP=' previous/rollback.sh 2>/dev/null)" ] || others=yes
trap '' INT TERM HUP  # half of it would be neither configuration
mkdir .rollback
for path in \
{% for path in paths %}
  {{ path | sh }}{{ "; do" if loop.last else " \\" }}
{% endfor %}
  if [ -e "$path" ]; then
    mkdir -p ".rollback/$(dirname -- "$path")"
    mv -- "$path" ".rollback/$path"
  fi
done
(cd previous && find . ! -type d) | while IFS= read -r path; do
  mkdir -p "$(dirname -- "$path")"
  mv -- "previous/$path" "$path"
done
rm -rf previous
mv .rollback previous
if [ -n "$others" ]; then
  echo "the one that was here has another name or target, and goes on beside this one until it is stopped: $STOP"
fi
echo "rolled back; start the stack anew: README.md says how"
