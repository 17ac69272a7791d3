#!/bin/sh
# Installs {{ title | line }} as services of systemd.  What it does, all of it:
#
#   1. makes the system user {{ user }}, who may log in nowhere
#   2. copies this folder's files to {{ folder | line }} (root's, readable)
#   3. copies the units to /etc/systemd/system
{% if gpus %}
#      and gives each replica GPUs of its own: /etc/{{ unit }}/PORT.env
{% endif %}
#   4. stops and disables what a former configuration of this name had and this one has not
#   5. enables and starts {{ unit }}.target
#
# ./install.sh --dry-run prints the commands instead;  ./install.sh --remove takes all of it away but what you put into
# {{ settings_folder | line }}.
set -eu
cd -- "$(dirname -- "$0")"
# Where systemd looks for programs: one in a virtual environment, or another place of your own, it would not find.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
DO=
case $* in
  --dry-run) DO=echo ;;
  --remove|'') ;;
  *) echo "usage: ./install.sh [--dry-run|--remove]" >&2; exit 2 ;;
esac
if [ -z "$DO" ] && [ "$(id -u)" -ne 0 ]; then
  echo "error: only root may install services (./install.sh --dry-run shows what would be done)" >&2
  exit 1
fi

# What is secret, or of this place alone: {{ settings }}, which is never touched here.
FOLDER={{ folder | sh }}
UNITS={{ units | join(" ") | sh }}
INSTANCES={{ instances | join(" ") | sh }}
# Of every configuration of this name: by their own names, for {{ unit }}-* may be of another deployment.
PROGRAMS={{ every_program | join(" ") | sh }}

# Services of this name that systemd knows, whatever configuration they are of.
installed() {
  systemctl list-units --all --plain --no-legend --full '{{ unit }}@*.service' 2>/dev/null | cut -d' ' -f1
  for program in $PROGRAMS; do
    [ -e "/etc/systemd/system/{{ unit }}-$program.service" ] && echo "{{ unit }}-$program.service"
  done
  return 0
}

if [ "${1:-}" = --remove ]; then
  systemctl disable --now {{ unit }}.target $(installed) || true
  rm -f "/etc/systemd/system/{{ unit }}.target" "/etc/systemd/system/{{ unit }}@.service" /etc/{{ unit }}/[0-9]*.env
  for program in $PROGRAMS; do
    rm -f "/etc/systemd/system/{{ unit }}-$program.service"
    rm -rf "/var/lib/{{ unit }}-$program"
  done
  systemctl daemon-reload
  rm -rf "$FOLDER" /var/cache/{{ unit }}
  userdel {{ user }} || true
  groupdel {{ user }} 2>/dev/null || true  # it stops the next useradd, where userdel leaves it
  exit
fi

{% include "install-of.sh" %}

absent() {  # TOOL
  echo "$1 is in none of $PATH, where systemd looks: $(install_of "$1"); if it is elsewhere: ln -s ELSEWHERE/$1 /usr/local/bin/"
}

leave_out() {  # SERVICE WHY
  echo "$1 is left out: $2" >&2
  INSTANCES=$(printf '%s\n' $INSTANCES | grep -vx "$1" | tr '\n' ' ')
}

{% for tool, service in optional %}
command -v {{ tool | sh }} >/dev/null || leave_out {{ service | sh }} "$(absent {{ tool | sh }})"
{% endfor %}
case " $INSTANCES " in
  *" {{ unit }}-alertmanager.service "*)
    # It would end at once, and again each time that it is started.
    if command -v amtool >/dev/null && ! told=$(amtool check-config alertmanager.yml 2>&1); then
      case $told in *url_file*) told={{ too_old_alertmanager | sh }} ;; esac
      leave_out {{ unit }}-alertmanager.service "it does not take alertmanager.yml: $(printf '%s' "$told" | tr '\n' ' ')"
    fi ;;
esac
for tool in {% for tool in tools %}{{ tool | sh }} {% endfor %}; do
  command -v "$tool" >/dev/null || { echo "error: $(absent "$tool")" >&2; [ -n "$DO" ] || exit 1; }
done
id {{ user }} >/dev/null 2>&1 || $DO useradd --system --user-group --no-create-home --shell /usr/sbin/nologin {{ user }}
# A link of those to a place that is root's alone starts nothing.
if [ -z "$DO" ]; then
{% for tool, service in optional %}
  tool=$(command -v {{ tool | sh }}) && ! runuser -u {{ user }} -- test -x "$tool" && leave_out {{ service | sh }} "{{ user }} may not execute $tool"
{% endfor %}
  for tool in {% for tool in tools %}{{ tool | sh }} {% endfor %}; do
    tool=$(command -v "$tool")
    runuser -u {{ user }} -- test -x "$tool" || { echo "error: {{ user }} may not execute $tool" >&2; exit 1; }
  done
fi
$DO install -d -m 0755 "$FOLDER" /etc/{{ unit }}
{% for path, what in own_files.items() %}
if [ -z "$DO" ] && ! runuser -u {{ user }} -- test -s {{ path | sh }} -a -r {{ path | sh }}; then
  echo {{ ("error: " ~ path ~ " is not there, or " ~ user ~ " may not read it: " ~ what) | sh }} >&2
  echo {{ ("hint: install -m 0640 -g " ~ user ~ " FILE " ~ path) | sh }} >&2
  exit 1
fi
{% endfor %}
{% if secrets or canary_shows_key %}
is_set() { grep -q "^$1=[\"']*[^\"' ]" {{ settings | sh }} 2>/dev/null; }
{% endif %}
{% for secret in secrets %}
if [ -z "$DO" ] && ! is_set {{ secret }}; then
  echo 'error: {{ secret }} is not in {{ settings }}, and without it everybody may ask' >&2
  echo 'hint: install -m 0600 settings.env.example {{ settings }}, and fill it in' >&2
  exit 1
fi
{% endfor %}
{% if canary_shows_key %}
if [ -z "$DO" ] && ! is_set LLMOPT_API_KEY; then
  leave_out {{ unit }}-canary.service 'LLMOPT_API_KEY is not in {{ settings }}, and the gateway refuses who has no key'
fi
{% endif %}
{% if webhook %}
if [ -z "$DO" ] && ! runuser -u {{ user }} -- test -s {{ webhook | sh }}; then
  echo 'note: {{ webhook }} is not there, or {{ user }} may not read it: alerts are seen in Prometheus alone' >&2
fi
{% endif %}
# The engine's words name these places, and its user must be able to read them.
if [ -z "$DO" ]; then
  for place in {% for place in places %}{{ place | sh }} {% endfor %}; do
    runuser -u {{ user }} -- test -r "$place" || {
      echo "error: {{ user }} may not read $place: put it where every user may, or let the group in (setfacl -m u:{{ user }}:rX)" >&2
      exit 1
    }
  done
fi
# Keys and certificate are read by it too, and a service that cannot start says so only in the journal.
if [ -z "$DO" ]; then
  scratch=$(mktemp -d)
  told=$(nginx -e stderr -p "$scratch" -t -c "$PWD/nginx.conf" 2>&1) || {
    rm -rf "$scratch"
    echo "error: nginx does not take nginx.conf, and nothing was started or copied: $(printf '%s' "$told" | tr '\n' ' ')" >&2
    exit 1
  }
  rm -rf "$scratch"
fi
# From here on it is this configuration: what runs reads its files again when it starts anew.
for path in {% for path in files %}{{ path | sh }} {% endfor %}; do
  case $path in */*) $DO install -d -m 0755 "$FOLDER/$(dirname -- "$path")" ;; esac
  $DO install -m 0644 -- "$path" "$FOLDER/$path"
done
# What a former configuration had and this one has not would go on, and keep its port.
for service in $(installed); do
  case " $INSTANCES " in *" $service "*) continue ;; esac
  $DO systemctl disable --now "$service"
  case $service in *@*) ;; *) $DO rm -f "/etc/systemd/system/$service" ;; esac
done
for file in $UNITS; do $DO install -m 0644 -- "units/$file" "/etc/systemd/system/$file"; done
{% for number, gpus_of in gpus %}
{% if loop.first %}
write_gpus() { printf 'CUDA_VISIBLE_DEVICES=%s\n' "$2" > "/etc/{{ unit }}/$1.env"; }
{% endif %}
$DO write_gpus {{ number }} {{ gpus_of | sh }}
{% endfor %}
$DO systemctl daemon-reload
$DO systemctl enable $INSTANCES {{ unit }}.target
# What failed too often before it was mended may start again (those that never ran are unknown, which is no error here).
$DO systemctl reset-failed $INSTANCES 2>/dev/null || true
$DO systemctl restart $INSTANCES {{ unit }}.target
[ -n "$DO" ] || echo "started: systemctl status '{{ unit }}*'; {{ url | line }}"
