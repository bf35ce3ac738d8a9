#!/usr/bin/env bash
# Puts one image on one host over SSH, and takes it back when it does not become ready.
#
#   deploy/ssh/deploy.sh USER@HOST registry.example/cifar-space@sha256:...     [ssh options in SSH_OPTIONS]
#   deploy/ssh/deploy.sh USER@HOST rollback                                    the image before
#
# On the host, in ~/cifar-space: `env` (CIFAR_* and NGINX_*, one a line), `models/` (mounted where it is there), `current`,
# `previous`, `log`; records are in the volume `cifar-records`. The new image is tried beside the old one first, on a local port; only when it is ready there does it take
# the place. The old container waits aside until the new one is ready there, and is started again if it never is; a host that dies in between starts it at its next
# boot, and a script that is killed leaves that to the next deployment. The host works on by itself: a lost connection interrupts nothing. ENGINE (docker), PORT (7860), TRY_PORT (17860) and WAIT_SECONDS (90) are read here.
set -euo pipefail
target=${1:?USER@HOST} image=${2:?IMAGE@sha256:DIGEST or rollback}
case $image in
  rollback) ;;
  *@sha256:*) [[ $image =~ ^[A-Za-z0-9._:/-]+@sha256:[0-9a-f]{64}$ ]] || { echo "deploy: $image is no digest" >&2; exit 2; } ;;
  *) echo "deploy: $image names no digest; a tag may be another image tomorrow" >&2; exit 2 ;;
esac
settings="image=$image engine=${ENGINE:-docker} port=${PORT:-7860} try_port=${TRY_PORT:-17860} wait_seconds=${WAIT_SECONDS:-90}"

# shellcheck disable=SC2086  # several options
exec ssh -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=15 ${SSH_OPTIONS:-} "$target" "$settings bash -s" <<'HOST'
main() {  # whole before any of it runs: a connection lost early leaves no half of a script, and no command reads the rest
set -euo pipefail
trap '' PIPE HUP
mkdir -p ~/cifar-space && cd ~/cifar-space
say() { printf '%s %s\n' "$(date -u +%FT%TZ)" "$*" >> log || true; printf '%s\n' "$*" 2>/dev/null || true; }

exec 9> lock
flock -n 9 || { say "another deployment is under way on this host"; exit 3; }
old=$(cat current 2>/dev/null || true)
if [ "$image" = rollback ]; then
  image=$(cat previous 2>/dev/null || true)
  [ -n "$image" ] || { say "there is no image to go back to"; exit 1; }
fi

start() {  # NAME PORT RESTART IMAGE OPTION...
  local options=(--name "$1" --publish "$2:7860" --restart "$3" --read-only --tmpfs /tmp:size=1g --cap-drop all
                 --security-opt no-new-privileges --memory 2g --pids-limit 512
                 --log-driver json-file --log-opt max-size=10m --log-opt max-file=5)
  [ ! -f env ] || options+=(--env-file env)
  [ ! -d models ] || options+=(--volume "$PWD/models:/app/saved_model:ro")
  "$engine" run --detach "${options[@]}" "${@:5}" "$4" 9>&- >/dev/null  # what watches a container must not keep the lock
}
ready() {  # PORT
  local deadline=$((SECONDS + wait_seconds))
  until curl --silent --fail --max-time 4 --output /dev/null "http://127.0.0.1:$1/readyz"; do
    [ $SECONDS -lt $deadline ] || return 1
    sleep 1
  done
}
tidy() {  # of our images the running one, the one before and the new one stay; one in use is not removed anyway
  local keep name digest
  keep="$(cat current previous 2>/dev/null || true) $image"
  "$engine" images --digests --format '{{.Repository}} {{.Digest}}' "${image%@*}" | while read -r name digest; do
    [[ $keep == *"$digest"* ]] || "$engine" rmi "$name@$digest" </dev/null || true
  done >/dev/null 2>&1 || true
}
gone() { "$engine" rm --force "$1" >/dev/null 2>&1 || true; }
running() { [ "$("$engine" container inspect --format '{{.State.Running}}' "$1" 2>/dev/null)" = true ]; }
aside() {  # out of the way, and off the port
  if "$engine" rename cifar-space cifar-space-before 2>/dev/null; then "$engine" stop -t 90 cifar-space-before >/dev/null; fi
}
back() {  # whatever took its place is not ready
  gone cifar-space
  if "$engine" rename cifar-space-before cifar-space 2>/dev/null; then
    "$engine" start cifar-space 9>&- >/dev/null && ready "$port" && say "serving $old again"
  fi
}
record() { printf '%s\n' "$2" > "$1.new" && mv "$1.new" "$1"; }

if "$engine" container inspect cifar-space-before >/dev/null 2>&1; then
  say "the deployment before this one was cut off"
  if running cifar-space; then gone cifar-space-before; else back; fi
fi
say "deploying $image (now: ${old:-nothing})"
tidy
"$engine" pull "$image" >/dev/null || { say "the image cannot be pulled; nothing was changed"; exit 1; }
gone cifar-space-try
# Tried without records: a start brings their tables up to date, and the old version, should it go on, may not know the new ones.
if ! { start cifar-space-try "127.0.0.1:$try_port" no "$image" --env CIFAR_RECORDS=false && ready "$try_port"; }; then
  "$engine" logs --tail 20 cifar-space-try 2>&1 | sed 's/^/  /' >> log || true
  gone cifar-space-try
  say "not ready within $wait_seconds s beside the old one, which goes on; its last lines are in ~/cifar-space/log"
  exit 1
fi
gone cifar-space-try

trap 'say "not ready in its place; going back to ${old:-nothing}"; back' EXIT
aside
start cifar-space "$port" always "$image" --volume cifar-records:/app/var && ready "$port" || exit 1
trap - EXIT
gone cifar-space-before
[ "$image" = "$old" ] || record previous "$old"
record current "$image"
say "serving $image"
}
main </dev/null
HOST
