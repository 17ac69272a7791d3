#!/bin/sh
# Puts the former configuration, which lies in previous/, back in place.  What is here now becomes previous/, so that running
# this again undoes it.  It changes files alone: start the stack anew afterwards (README.md says how).
set -eu
cd -- "$(dirname -- "$0")"
if [ ! -f previous/deployment.json ]; then
  echo "error: there is no previous/deployment.json, so there is nothing to roll back to" >&2
  exit 1
fi
if [ -e .rollback ]; then
  echo "error: .rollback is there: an earlier rollback was cut short; move its files back, then remove it" >&2
  exit 1
fi
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
(cd previous && find . -type f) | while read -r path; do
  mkdir -p "$(dirname -- "$path")"
  mv -- "previous/$path" "$path"
done
rm -rf previous
mv .rollback previous
echo "rolled back; start the stack anew: README.md says how"
