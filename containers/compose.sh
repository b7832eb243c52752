#!/usr/bin/env bash
# Docker Compose with compose.yaml beside this file: `up` and `down` as make calls them, and whatever
# else Compose knows, as `logs -f agent-1`. FLEET_DIR is the folder shared with the containers, FLEET_NAME
# the name of the Compose project, FLEET_PORT that of S3 and SQS; FLEET_DOCKER=1 hands the engine to the
# agents.
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
mkdir -p "$folder/agents"
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
agents=(agent-1 agent-2)

see_to_base_image() {
    local base=debian:trixie-slim
    docker image inspect "$base" >/dev/null 2>&1 || docker pull "$base" 2>/dev/null ||
        "$here/base-image.sh" trixie # no public registry can be reached
}

build() {
    see_to_base_image
    "${compose[@]}" build aws-for-trying agent-1 # whose image is all agents'
}

container_of() {
    "${compose[@]}" ps --quiet "$1"
}

wait_for() { # SERVICE
    local id
    id=$("${compose[@]}" ps --all --quiet "$1")
    for ((seconds = 0; seconds < 120; seconds++)); do
        case $(docker inspect --format '{{.State.Health.Status}} {{.RestartCount}}' "$id") in
        healthy*) return 0 ;;
        *[3-9]) break ;; # and each time it failed at once
        esac
        sleep 1
    done
    "${compose[@]}" logs --tail 20 "$1" >&2
    fail "$1 does not start: above is its log"
}

# Let agents give their tasks back to the queue: with their containers the commands end.
give_back() { # SERVICES
    local service id ids=()
    for service; do
        id=$(container_of "$service")
        [ -z "$id" ] || ids+=("$id")
    done
    [ ${#ids[@]} -gt 0 ] || return 0
    for _ in first second; do
        docker kill --signal INT "${ids[@]}" >/dev/null 2>&1 || true # one may not run
        sleep 1 # two that arrive at once are one
    done
    timeout 60 docker wait "${ids[@]}" >/dev/null 2>&1 || true
}

is_out_of_date() { # SERVICE
    local id
    id=$(container_of "$1")
    [ -n "$id" ] && [ "$(docker inspect --format '{{.Image}}' "$id")" != \
        "$(docker image inspect --format '{{.Id}}' simagent/agent)" ]
}

# What a client on the host needs to know, to be read by a shell.
write_settings() {
    local endpoint=http://127.0.0.1:${FLEET_PORT:-7070}
    cat >"$FLEET_DIR/client.env" <<END
export SIMAGENT_QUEUE=sqs://simagent-{group} SIMAGENT_STORE=s3://simagent/fleet
export SIMAGENT_SQS_ENDPOINT=$endpoint SIMAGENT_SQS_REGION=eu-west-1
export SIMAGENT_S3_ENDPOINT=$endpoint SIMAGENT_S3_REGION=eu-west-1
export AWS_ACCESS_KEY_ID=anybody AWS_SECRET_ACCESS_KEY=anything
END
}

case "$*" in
up)
    build
    for agent in "${agents[@]}"; do
        ! is_out_of_date "$agent" || give_back "$agent" # its container is going to be replaced
    done
    "${compose[@]}" up --detach aws-for-trying
    wait_for aws-for-trying
    "${compose[@]}" run --rm --no-deps -T agent-1 simagent setup >/dev/null
    "${compose[@]}" up --detach
    for agent in "${agents[@]}"; do wait_for "$agent"; done
    write_settings
    task=examples/two-steps/task.yaml
    [ -z "${FLEET_DOCKER:-}" ] || task="TASK    # one that names an image: they take no others"
    cat <<TELL
Two agents take the tasks of an S3 and an SQS that are for trying only. To submit, and to see what they do:
    . $FLEET_DIR/client.env
    simagent submit $task
    containers/compose.sh logs -f agent-1 agent-2
TELL
    ;;
build)
    build
    ;;
down)
    give_back "${agents[@]}"
    "${compose[@]}" down --remove-orphans
    rm -f "$FLEET_DIR/client.env"
    ;;
*)
    exec "${compose[@]}" "$@"
    ;;
esac
