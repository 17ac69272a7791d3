#!/bin/sh
# {{ title | line }}: {{ replicas }} replica{{ "" if replicas == 1 else "s" }} behind nginx, on this machine, without root.
#
#   ./run.sh          start all of it; Ctrl-C or SIGTERM stops all of it
#   ./run.sh status   what runs, what answers
#   ./run.sh stop     stop what another ./run.sh started
#
# A program that ends is started again, after 1, 2, 4 … 60 seconds while it does not last.  Logs are in logs/, requests in
# run/nginx/access.log.  Nothing here limits memory: units of systemd (--target systemd) do.
set -u
cd -- "$(dirname -- "$0")" || exit 1
# Secrets and settings of your own: NAME=value lines, as in .env.example.  Only a start needs them: who may not read them may
# still ask for the status.
if [ -f .env ] && { [ -r .env ] || [ "${*:-start}" = start ]; }; then
  set -a
  . ./.env
  set +a
fi

PATH=$PATH:/usr/sbin:/sbin  # where Debian has nginx, and not everybody looks
GATEWAY={{ gateway | sh }}
READY_S={{ ready_s }}
ENGINES={{ engines | join(" ") | sh }}
OTHERS={{ others | join(" ") | sh }}

# Becomes the program of that name.  The words are those that were measured; only the port differs.
become() {
  case $1 in
{% for program in programs %}
    {{ program.name }})
{% for file in program.files %}
      mkdir -p {{ file.folder | sh }} && printf %s {{ file.text | sh }} > {{ file.path | sh }} || exit 1
{% endfor %}
      exec $GROUP {% for word in program.words %}{{ word | sh }}{{ "" if loop.last else " " }}{% endfor %} ;;
{% endfor %}
  esac
}

port_of() {
  case $1 in
{% for program in programs %}
    {{ program.name }}) echo {{ program.port }} ;;
{% endfor %}
  esac
}

asked_of() {  # what tells that it is alive
  case $1 in
{% for program in programs %}
    {{ program.name }}) echo {{ program.asked | sh }} ;;
{% endfor %}
  esac
}

{% include "install-of.sh" %}

say() { printf '%s %s\n' "$(date +%H:%M:%S)" "$*" >&2; }
fail() { say "error: $*"; exit 1; }
# Whoever asks: of another one's process a signal tells nothing.
alive() { [ -s "run/$1.pid" ] && [ -d "/proc/$(cat "run/$1.pid")" ]; }

ask() {  # ADDRESS
  case $1 in
    redis:*) timeout 5 redis-cli -u "$1" ping >/dev/null 2>&1 ;;
    *) curl -sf --noproxy '*' -o /dev/null -m 5 "$1" ;;
  esac
}

# Ready is a real completion: an engine may say that it is healthy and die of its first request.  Headers go through a pipe:
# a key among the words of a program is seen by everybody on the machine.
headers_of() {
  echo 'Content-Type: application/json'
{% if through_litellm %}
  [ "$1" = litellm ] && printf 'Authorization: Bearer %s\n' "$LITELLM_MASTER_KEY"
{% endif %}
  return 0
}

completes() {
  headers_of "$1" 9>&- | curl -sf --noproxy '*' -o /dev/null -m 60 -H @- -d @completion.json \
    "http://127.0.0.1:$(port_of "$1")/v1/completions" 9>&- &
  helper=$!
  wait $helper  # which a signal interrupts, and not a program in the foreground
}

start() {
  become "$1" >>"logs/$1.log" 2>&1 </dev/null 9>&- &
  echo $! >"run/$1.pid"
  date +%s >"run/$1.since"
}

nap() {
  sleep "$1" 9>&- &
  helper=$!
  wait $helper 2>/dev/null
}

# Of the whole group: engines have processes of their own.  dash takes -- only after -s.
signal_all() {
  for name in $2; do
    [ -s "run/$name.pid" ] && kill -s "$1" -- "-$(cat "run/$name.pid")" 2>/dev/null
  done
  return 0
}

gone() {
  for name in $1; do
    [ -s "run/$name.pid" ] && kill -s 0 -- "-$(cat "run/$name.pid")" 2>/dev/null && return 1
  done
  return 0
}

end_of() {  # SECONDS NAMES: waits until they are gone, then kills
  left=$(($1 * 5))
  while ! gone "$2" && [ "$left" -gt 0 ]; do
    sleep 0.2
    left=$((left - 1))
  done
  gone "$2" || signal_all KILL "$2"
}

stop_all() {
  trap '' INT TERM HUP
  trap - EXIT
  say "stopping"
  [ -n "${helper:-}" ] && kill "$helper" 2>/dev/null
  signal_all TERM canary
  signal_all QUIT gateway  # nginx lets go of nobody whom it is answering
  end_of {{ drain_s }} gateway
  signal_all TERM "$OTHERS $ENGINES"
  end_of {{ stop_s }} "$OTHERS $ENGINES"
  rm -f run/*.pid run/*.since run/*.pause run/*.ended run/programs
}

# Starts again what ended, later each time it did not last a minute.
again() {
  now=$(date +%s)
  [ -s "run/$1.ended" ] || echo "$now" >"run/$1.ended"  # the pause is no part of how long it lasted
  ended=$(cat "run/$1.ended")
  lasted=$((ended - $(cat "run/$1.since")))
  pause=$(cat "run/$1.pause" 2>/dev/null || echo 1)
  [ "$lasted" -gt 60 ] && pause=0
  [ $((now - ended)) -lt "$pause" ] && return 0
  next=$((pause * 2))
  [ "$next" -lt 1 ] && next=1
  [ "$next" -gt 60 ] && next=60
  echo "$next" >"run/$1.pause"
  rm -f "run/$1.ended"
  say "$1 ended after $lasted s and is started again (logs/$1.log)"
  signal_all KILL "$1"  # what it left behind would keep its port
  start "$1"
}

wait_ready() {
  deadline=$(($(date +%s) + READY_S))
  until alive "$1" && ask "$(asked_of "$1")" && completes "$1"; do
    alive "$1" || { tail -n 20 "logs/$1.log" >&2; fail "$1 ended before it was ready: the end of logs/$1.log is above"; }
    [ "$(date +%s)" -lt "$deadline" ] || fail "$1 was not ready after $READY_S s: logs/$1.log"
    nap 0.2
  done
  say "$1 answers on port $(port_of "$1")"
}

running() { ! flock -n run/lock true; }

programs() {  # a line of each: NAME PORT ADDRESS
  for name in $ENGINES $OTHERS gateway; do echo "$name $(port_of "$name") $(asked_of "$name")"; done
}

# Of what was started, which another run.sh may have been: llmopt deploy writes a new one beside it.
status() {
  worst=0
  started=$(cat run/programs 2>/dev/null || programs)
  while read -r name port address; do
    if alive "$name" && ask "$address"; then
      echo "$name: answers on port $port"
    elif alive "$name"; then
      echo "$name: runs, and does not answer on port $port"
      worst=1
    else
      echo "$name: does not run"
      worst=1
    fi
  done <<END
$started
END
  return $worst
}

mkdir -p logs run/nginx || exit 1
case ${*:-start} in
  status) status; exit ;;
  stop)
    running || { echo "nothing runs" >&2; exit 1; }
    supervisor=$(cat run/supervisor.pid 2>/dev/null)
    # It would be waited for without end.
    kill -TERM "$supervisor" 2>/dev/null || fail "the ./run.sh that runs here, process ${supervisor:-unknown}, takes no signal from $(id -un)"
    while running; do sleep 0.2; done
    exit ;;
  start) ;;
  *) echo "usage: ./run.sh [start|status|stop]" >&2; exit 2 ;;
esac

for tool in {% for tool in tools %}{{ tool | sh }} {% endfor %}; do
  command -v "$tool" >/dev/null || fail "$tool is not on the PATH: $(install_of "$tool")"
done
for name in {% for program in optional %}{{ program.name }} {% endfor %}; do
  case $name in
{% for program in optional %}
    {{ program.name }}) tool={{ program.words[0] | sh }} ;;
{% endfor %}
  esac
  command -v "$tool" >/dev/null && continue
  say "$name is left out: $tool is not on the PATH: $(install_of "$tool")"
  OTHERS=$(printf '%s\n' $OTHERS | grep -vx "$name" | tr '\n' ' ')
done
{% if canary_shows_key %}
case " $OTHERS " in
  *" canary "*)
    if [ -z "${LLMOPT_API_KEY:-}" ]; then
      say "canary is left out: LLMOPT_API_KEY is empty (.env.example says which), and the gateway refuses who has no key"
      OTHERS=$(printf '%s\n' $OTHERS | grep -vx canary | tr '\n' ' ')
    fi ;;
esac
{% endif %}
case " $OTHERS " in
  *" alertmanager "*)
    # It would end at once, and again each time that it is started.
    if command -v amtool >/dev/null && ! told=$(amtool check-config alertmanager.yml 2>&1); then
      case $told in *url_file*) told={{ too_old_alertmanager | sh }} ;; esac
      say "alertmanager is left out: it does not take alertmanager.yml: $(printf '%s' "$told" | tr '\n' ' ')"
      OTHERS=$(printf '%s\n' $OTHERS | grep -vx alertmanager | tr '\n' ' ')
    fi ;;
esac
# The lock goes with this process, however it ends; what it starts is not given it.
exec 9>run/lock
flock -n 9 || fail "another ./run.sh runs here, as process $(cat run/supervisor.pid)"
# Each program leads a group of its own, so that all of it can be stopped; where the kernel can be told to, it ends with us.
GROUP=setsid
setpriv --pdeathsig TERM true 2>/dev/null && GROUP="setsid setpriv --pdeathsig TERM"
rm -f run/*.pid run/*.since run/*.pause run/*.ended
{% for path, what in own_files.items() %}
[ -s {{ path | sh }} ] || fail {{ (path ~ " is not there: " ~ what ~ " (for you alone: chmod 600)") | sh }}
{% endfor %}
{% for secret in secrets %}
[ -n "${{ "{" }}{{ secret }}:-}" ] || fail "{{ secret }} is empty: copy .env.example to .env and fill it in"
{% endfor %}
rm -f run/alert_webhook_url  # of a former start: an address that was taken out is told nothing more
[ -n "${ALERT_WEBHOOK_URL:-}" ] && (umask 077 && printf %s "$ALERT_WEBHOOK_URL" >run/alert_webhook_url)
programs >run/programs
echo $$ >run/supervisor.pid
trap 'stop_all; exit 0' INT TERM HUP
trap 'stop_all' EXIT

# Somebody else who answers there would be taken for ours.
for name in $ENGINES $OTHERS gateway; do
  curl -s --noproxy '*' -o /dev/null -m 2 "http://127.0.0.1:$(port_of "$name")/"
  [ $? -eq 7 ] || fail "port $(port_of "$name") of $name is in use: llmopt deploy --port takes others"
done
# Keys, certificate, a port that is root's alone: said before engines load for minutes.
told=$({% for word in nginx %}{{ word | sh }} {% endfor %}-t 2>&1) || fail "nginx does not take nginx.conf: $(printf '%s' "$told" | tr '\n' ' ')"
for name in $ENGINES; do start "$name"; done
for name in $ENGINES; do wait_ready "$name"; done
for name in $OTHERS; do [ "$name" = canary ] || start "$name"; done
{% if through_litellm %}
wait_ready litellm
{% endif %}
start gateway
tries=50
until ask "$(asked_of gateway)"; do
  alive gateway || { tail -n 5 logs/gateway.log >&2; fail "nginx did not start: logs/gateway.log"; }
  [ "$tries" -gt 0 ] || fail "nginx does not answer on port $GATEWAY: logs/gateway.log"
  tries=$((tries - 1))
  nap 0.1
done
# Last: what it is not answered is an error of the service's, and somebody is called.
case " $OTHERS " in *" canary "*) start canary ;; esac
say "ready: {{ url | line }}"
while :; do
  for name in $ENGINES $OTHERS gateway; do
    alive "$name" || again "$name"
  done
  nap 1
done
