#!/bin/sh
# Powers the machine off where its agent has been unable to run for DEADMAN_AFTER seconds (1800;
# 0: never). Called once a minute by simagent-deadman.timer. Needs nothing of the agent's: neither
# its Python nor its settings, which may be what is broken.
#
# The agent can run: it has been active for a minute, or it ended as it was told to. It cannot: it
# fails again and again, hangs until systemd's watchdog ends it, or has no configuration.
#
# No machine is powered off under a simulation. One without an agent ends by itself after
# orphan_limit, and then nothing holds the machine any more.
set -u

after=${DEADMAN_AFTER:-1800}
mark=${RUNTIME_DIRECTORY:-/run/simagent-deadman}/well
proc=${DEADMAN_PROC:-/proc}
units=${DEADMAN_UNITS:-simagent.service simagent-member.service}
steady=${DEADMAN_STEADY:-60}

case $after in
'' | *[!0-9]*)
    echo "DEADMAN_AFTER is '$after', which is no number of seconds: 1800 is used" >&2
    after=1800
    ;;
esac
[ "$after" -gt 0 ] || exit 0

# Seconds since the boot, by a clock that nobody sets.
read -r now _ <"$proc/uptime" || exit 1
now=${now%%.*}

# Tell whether the agent of a unit can run, and in $state how the unit is.
well() {
    load='' active='' sub='' result='' condition='' tried=0 since=0
    shown=$(timeout 20 systemctl show --property=LoadState,ActiveState,SubState,Result \
        --property=ConditionResult,ConditionTimestampMonotonic,ActiveEnterTimestampMonotonic "$1")
    while IFS='=' read -r name value; do
        case $name in
        LoadState) load=$value ;;
        ActiveState) active=$value ;;
        SubState) sub=$value ;;
        Result) result=$value ;;
        ConditionResult) condition=$value ;;
        ConditionTimestampMonotonic) tried=${value:-0} ;;
        ActiveEnterTimestampMonotonic) since=${value:-0} ;;
        esac
    done <<END
$shown
END
    state="$1: ${active:-unknown} (${sub:-unknown}, ${result:-unknown})"
    case $active in
    active | reloading)
        [ $((now - since / 1000000)) -ge "$steady" ]
        ;;
    inactive)
        [ "$load" = loaded ] && [ "$tried" != 0 ] && [ "$condition" = yes ] &&
            [ "$result" = success ]
        ;;
    *)
        false
        ;;
    esac
}

states=
for unit in $units; do
    if well "$unit"; then
        echo "$now" >"$mark"
        exit 0
    fi
    states="$states${states:+, }$state"
done

last=
[ -r "$mark" ] && read -r last <"$mark"
case $last in
'' | *[!0-9]*)
    echo "$now" >"$mark"
    last=$now
    ;;
esac
dead=$((now - last))

# The shims of steps, and what looks after them in containers. (The brackets: not grep itself.)
if grep -qsE '[s]him\.pyc|[_]sa_guard' "$proc"/[0-9]*/cmdline; then
    echo "no agent can run since $dead s ($states), but a simulation does: the machine stays on"
    exit 0
fi
if [ "$dead" -lt "$after" ]; then
    echo "no agent can run since $dead s ($states): power-off in $((after - dead)) s"
    exit 0
fi
echo "no agent could run for $dead s ($states): powering off" >&2
timeout 30 systemctl poweroff ||
    timeout 30 systemctl poweroff --force ||
    timeout 30 systemctl poweroff --force --force
