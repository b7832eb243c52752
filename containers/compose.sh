#!/usr/bin/env bash
# Docker Compose with compose.yaml beside this file: `up` and `down` as make calls them, and whatever
# else Compose knows, as `logs -f agent`. FLEET_DIR is the folder shared with the containers, FLEET_NAME
# the name of the Compose project; FLEET_DOCKER=1 hands the engine to the agent.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

fail() {
    echo "$*" >&2
    exit 1
}

command -v docker >/dev/null ||
    fail "docker is missing: install Docker Engine and Compose" \
        "(on Debian: apt-get install docker.io docker-compose)"
if docker compose version >/dev/null 2>&1; then
    compose=(docker compose)
elif command -v docker-compose >/dev/null; then
    compose=(docker-compose)
else
    fail "Docker Compose is missing: install it (on Debian: apt-get install docker-compose)"
fi
why_not=$(timeout 20 docker version --format '{{.Server.Version}}' 2>&1 >/dev/null) ||
    fail "no Docker Engine can be used: ${why_not:-it does not answer}: start it" \
        "(systemctl start docker), or let yourself use it (adduser $(id -un) docker, a new login)"

folder=${FLEET_DIR:-$here/../build/fleet}
mkdir -p "$folder/container"
FLEET_DIR=$(cd "$folder" && pwd)
FLEET_USER=$(id -u):$(id -g)
# The root of a rootless engine is the user who runs it.
if docker info --format '{{.SecurityOptions}}' | grep -q name=rootless; then FLEET_USER=0:0; fi
export FLEET_DIR FLEET_USER
compose+=(--project-name "${FLEET_NAME:-simagent}" --file "$here/compose.yaml")
if [ -n "${FLEET_DOCKER:-}" ]; then
    FLEET_SOCKET=${DOCKER_HOST:-unix:///var/run/docker.sock}
    FLEET_SOCKET=${FLEET_SOCKET#unix://}
    [ -S "$FLEET_SOCKET" ] ||
        fail "FLEET_DOCKER: $FLEET_SOCKET is no socket of this machine: use its own engine"
    FLEET_SOCKET_GROUP=$(stat --dereference --format %g "$FLEET_SOCKET")
    export FLEET_SOCKET FLEET_SOCKET_GROUP
    compose+=(--file "$here/compose.docker.yaml")
fi

see_to_base_image() {
    local base=debian:trixie-slim
    docker image inspect "$base" >/dev/null 2>&1 || docker pull "$base" 2>/dev/null ||
        "$here/base-image.sh" trixie # no public registry can be reached
}

wait_for_agent() {
    local id
    id=$("${compose[@]}" ps --all --quiet agent)
    for ((seconds = 0; seconds < 30; seconds++)); do
        case $(docker inspect --format '{{.State.Health.Status}} {{.RestartCount}}' "$id") in
        healthy*) return 0 ;;
        *[3-9]) break ;; # and each time it failed at once
        esac
        sleep 1
    done
    "${compose[@]}" logs --tail 20 agent >&2
    fail "the agent does not start: above is its log"
}

# Let the agent give its tasks back to the queue: with the container their commands end.
give_back() {
    local id
    id=$("${compose[@]}" ps --quiet agent)
    [ -n "$id" ] || return 0
    for _ in first second; do
        docker kill --signal INT "$id" >/dev/null 2>&1 || return 0 # it does not run
    done
    timeout 60 docker wait "$id" >/dev/null || true
}

is_out_of_date() {
    local id
    id=$("${compose[@]}" ps --quiet agent)
    [ -n "$id" ] && [ "$(docker inspect --format '{{.Image}}' "$id")" != \
        "$(docker image inspect --format '{{.Id}}' simagent/agent)" ]
}

case "$*" in
up)
    see_to_base_image
    "${compose[@]}" build agent
    ! is_out_of_date || give_back # its container is going to be replaced
    "${compose[@]}" up --detach
    wait_for_agent
    task=examples/two-steps/task.yaml
    [ -z "${FLEET_DOCKER:-}" ] || task="TASK    # one that names an image: it takes no others"
    cat <<TELL
An agent takes the tasks of $FLEET_DIR. To submit there, and to see what it does:
    export SIMAGENT_STATE_DIR=$FLEET_DIR
    simagent submit $task
    containers/compose.sh logs -f agent
TELL
    ;;
"build agent")
    see_to_base_image
    "${compose[@]}" build agent
    ;;
down)
    give_back
    "${compose[@]}" down --remove-orphans
    ;;
*)
    exec "${compose[@]}" "$@"
    ;;
esac
