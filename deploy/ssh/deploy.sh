#!/usr/bin/env bash
# Deploys an image to a host over SSH, and rolls back when it does not become ready.
#
#   deploy/ssh/deploy.sh USER@HOST registry.example/cifar-space@sha256:...     [ssh options in SSH_OPTIONS]
#   deploy/ssh/deploy.sh USER@HOST rollback                                    the previous image
#
# On the host, ~/cifar-space holds `env` (CIFAR_* and NGINX_*, one a line), `models/` (mounted if it exists), `current`,
# `previous` and `log`; records are in the volume `cifar-records`. The new image is first tried beside the old one, on a local
# port, and replaces it only when it is ready there. The old container is kept until the new one is ready in its place, and is
# started again otherwise. If the host goes down in between, the engine starts the old container at the next boot; if the
# script is killed, the next deployment restores it. The script runs on the host to its end even when the connection is lost.
# Read from the environment: ENGINE (docker), PORT (7860), TRY_PORT (17860), WAIT_SECONDS (90).
set -euo pipefail
target=${1:?USER@HOST} image=${2:?IMAGE@sha256:DIGEST or rollback}
case $image in
  rollback) ;;
  *@sha256:*) [[ $image =~ ^[A-Za-z0-9._:/-]+@sha256:[0-9a-f]{64}$ ]] || { echo "deploy: $image is not a digest" >&2; exit 2; } ;;
  *) echo "deploy: $image has no digest; a tag may later name another image" >&2; exit 2 ;;
esac
engine=${ENGINE:-docker} port=${PORT:-7860} try_port=${TRY_PORT:-17860} wait_seconds=${WAIT_SECONDS:-90}
[[ $engine =~ ^[A-Za-z0-9._/-]+$ ]] || { echo "deploy: ENGINE is \"$engine\"; it takes the name or path of a program, such as podman" >&2; exit 2; }
for number in "$port" "$try_port" "$wait_seconds"; do
  [[ $number =~ ^[0-9]{1,5}$ ]] || { echo "deploy: PORT, TRY_PORT and WAIT_SECONDS take numbers up to 99999; \"$number\" is not one" >&2; exit 2; }
done
settings="image=$image engine=$engine port=$port try_port=$try_port wait_seconds=$wait_seconds"  # all checked: a shell reads it on the host

# shellcheck disable=SC2086  # may hold several options
exec ssh -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=15 ${SSH_OPTIONS:-} -- "$target" "$settings bash -s" <<'HOST'
main() {  # bash reads the whole function before it runs: a lost connection leaves no half script, and no command reads from it
set -euo pipefail
trap '' PIPE HUP
mkdir -p ~/cifar-space && cd ~/cifar-space
say() { printf '%s %s\n' "$(date -u +%FT%TZ)" "$*" >> log || true; printf '%s\n' "$*" 2>/dev/null || true; }

exec 9> lock
flock -n 9 || { say "another deployment is running on this host"; exit 3; }
old=$(cat current 2>/dev/null || true)
if [ "$image" = rollback ]; then
  image=$(cat previous 2>/dev/null || true)
  [ -n "$image" ] || { say "there is no previous image"; exit 1; }
fi

start() {  # NAME PORT RESTART IMAGE OPTION...
  local options=(--name "$1" --publish "$2:7860" --restart "$3" --read-only --tmpfs /tmp:size=1g --cap-drop all
                 --security-opt no-new-privileges --memory 2g --pids-limit 512
                 --log-driver json-file --log-opt max-size=10m --log-opt max-file=5)
  [ ! -f env ] || options+=(--env-file env)
  [ ! -d models ] || options+=(--volume "$PWD/models:/app/saved_model:ro")
  "$engine" run --detach "${options[@]}" "${@:5}" "$4" 9>&- >/dev/null  # the process that monitors a container must not inherit the lock
}
ready() {  # PORT
  local deadline=$((SECONDS + wait_seconds))
  until curl --silent --fail --max-time 4 --output /dev/null "http://127.0.0.1:$1/readyz"; do
    [ $SECONDS -lt $deadline ] || return 1
    sleep 1
  done
}
tidy() {  # remove images of this name except the running, the previous and the new one
  local keep name digest
  keep="$(cat current previous 2>/dev/null || true) $image"
  "$engine" images --digests --format '{{.Repository}} {{.Digest}}' "${image%@*}" | while read -r name digest; do
    [[ $keep == *"$digest"* ]] || "$engine" rmi "$name@$digest" </dev/null || true
  done >/dev/null 2>&1 || true
}
gone() { "$engine" rm --force "$1" >/dev/null 2>&1 || true; }
running() { [ "$("$engine" container inspect --format '{{.State.Running}}' "$1" 2>/dev/null)" = true ]; }
aside() {  # rename and stop the running container, which frees the port
  if "$engine" rename cifar-space cifar-space-before 2>/dev/null; then "$engine" stop -t 90 cifar-space-before >/dev/null; fi
}
back() {  # remove the new container and start the old one again
  gone cifar-space
  if "$engine" rename cifar-space-before cifar-space 2>/dev/null; then
    "$engine" start cifar-space 9>&- >/dev/null && ready "$port" && say "serving $old again"
  fi
}
record() { printf '%s\n' "$2" > "$1.new" && mv "$1.new" "$1"; }

if "$engine" container inspect cifar-space-before >/dev/null 2>&1; then
  say "the previous deployment was interrupted"
  if running cifar-space; then gone cifar-space-before; else back; fi
fi
say "deploying $image (now: ${old:-nothing})"
tidy
"$engine" pull "$image" >/dev/null || { say "the image cannot be pulled; nothing was changed"; exit 1; }
gone cifar-space-try
# The trial runs without records: a start migrates the tables, and the old version may not know the new ones.
if ! { start cifar-space-try "127.0.0.1:$try_port" no "$image" --env CIFAR_RECORDS=false && ready "$try_port"; }; then
  "$engine" logs --tail 20 cifar-space-try 2>&1 | sed 's/^/  /' >> log || true
  gone cifar-space-try
  say "not ready within $wait_seconds s; the old version keeps running. The last lines of the new one are in ~/cifar-space/log"
  exit 1
fi
gone cifar-space-try

trap 'say "not ready after the switch; going back to ${old:-nothing}"; back' EXIT
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
