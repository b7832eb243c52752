#!/bin/sh
# Powers the machine off where its agent has been unable to run for DEADMAN_AFTER seconds (1800;
# 0: never). Called once a minute by simagent-deadman.timer. Needs nothing of the agent's: neither
# its Python nor its settings, which may be what is broken.
#
# What systemd tells of the agent's units decides; what it does not tell counts for nothing. The time
# is summed up from look to look, none of which counts for more than LONGEST seconds: what passes
# while the machine sleeps, or nobody looks, is no time without an agent. At least LEAST looks in a
# row have to find none.
#
# No machine is powered off under a simulation. One without an agent ends by itself after
# orphan_limit, and then nothing holds the machine any more. While somebody is logged in, or runs an
# agent by hand, the time does not begin.
set -u
LC_ALL=C
export LC_ALL

LEAST=5
LONGEST=120
units='simagent.service simagent-member.service'
after=${DEADMAN_AFTER:-1800}
mark=${RUNTIME_DIRECTORY:-/run/simagent-deadman}/looks
proc=${DEADMAN_PROC:-/proc}
dev=${DEADMAN_DEV:-/dev}

# Tell whether something is a number that the shell can reckon with.
is_number() {
    case $1 in
    0) true ;;
    '' | 0* | *[!0-9]* | ??????????*) false ;;
    esac
}

if ! is_number "$after"; then
    echo "DEADMAN_AFTER is '$after', which is no number of seconds: 1800 is used" >&2
    after=1800
fi
[ "$after" -gt 0 ] || exit 0

# Seconds since the boot. Two looks are compared by them; systemd's times are by another clock.
read -r now _ <"$proc/uptime" || exit 1
now=${now%%.*}
is_number "$now" || exit 1

# The last look: when, the seconds and looks without an agent until then, and what was seen of it.
last='' dead='' looks='' before=''
[ ! -r "$mark" ] || read -r last dead looks before <"$mark"
if ! is_number "$last" || ! is_number "$dead" || ! is_number "$looks"; then
    last=$now dead=0 looks=0 before=''
fi
step=$((now - last))
[ $step -ge 0 ] || step=0
[ $step -le $LONGEST ] || step=$LONGEST

# Add what systemd tells of a unit to what is known.
look_at() { # UNIT
    load='' active='' sub='' result='' condition='' file='' restart='' tried=0 since=0
    shown=$(timeout -k 5 20 systemctl show \
        --property=LoadState,UnitFileState,ActiveState,SubState,Result,Restart \
        --property=ConditionResult,ConditionTimestampMonotonic,ActiveEnterTimestampMonotonic "$1")
    while IFS='=' read -r name value; do
        case $name in
        LoadState) load=$value ;;
        UnitFileState) file=$value ;;
        ActiveState) active=$value ;;
        SubState) sub=$value ;;
        Result) result=$value ;;
        Restart) restart=$value ;;
        ConditionResult) condition=$value ;;
        ConditionTimestampMonotonic) tried=$value ;;
        ActiveEnterTimestampMonotonic) since=$value ;;
        esac
    done <<END
$shown
END
    states="$states${states:+, }$1: ${active:-unknown} (${sub:-unknown}, ${result:-unknown})"
    case $active:$file in
    active:* | reloading:* | refreshing:*)
        # It runs, if it is the one of the last look. One that crashes again and again is another
        # one each time, as is one that hangs: systemd's watchdog has it started again in less.
        case " $before " in
        *" $1:$since "*) runs=yes ;;
        *) fails=yes ;;
        esac
        actives="$actives $1:$since"
        ;;
    inactive:enabled*)
        # Not tried: what it needs failed, or it was never started. Its condition: a configuration.
        case $load:$tried:$condition:$result in
        loaded:0:*) lacks=yes ;;
        loaded:*:yes:success) told=yes ;;
        *) lacks=yes ;;
        esac
        ;;
    failed:enabled*)
        # What ends by itself is started again: this was stopped, if not in time.
        case $restart:$result in
        always:start-limit-hit) fails=yes ;;
        always:*) told=yes ;;
        *) fails=yes ;;
        esac
        ;;
    inactive:* | failed:*) ;; # disabled, masked or removed: there is not meant to be one
    :*) mute=yes ;;
    *) fails=yes ;;
    esac
}

# Tell whether the agent can run: yes, no, unknown, or boot: perhaps, once that is over.
ask_systemd() {
    runs='' fails='' told='' lacks='' mute='' actives='' states=''
    for unit in $units; do
        look_at "$unit"
    done
    if [ $runs ]; then
        can=yes
    elif [ $mute ]; then
        can=unknown
    elif [ $fails ]; then
        can=no
    elif [ $told ] || [ ! $lacks ]; then
        can=yes
    else
        case $(timeout -k 5 20 systemctl is-system-running) in
        initializing | starting) can=boot actives=' boot' ;;
        *) can=no ;;
        esac
    fi
}

# Tell whether a person is here, or a program of somebody's: by ssh, or at a terminal or console where
# something was typed since the last look.
somebody_is_here() {
    grep -qsaE '^sshd(-session)?: [^ ]+@(pts/|notty|internal-sftp)' "$proc"/[0-9]*/cmdline ||
        [ -n "$(find "$dev" "$dev/pts" -maxdepth 1 ! -type d -anewer "$mark" \
            \( -name '[0-9]*' -o -name 'tty?*' -o -name 'hvc?*' \) 2>/dev/null)" ]
}

# Tell whether an agent runs, or `simagent run`, that is none of systemd's here.
agent_by_hand() {
    for process in $(grep -lsa simagent "$proc"/[0-9]*/cmdline); do
        process=${process%/cmdline}
        case $( (tr '\0' ' ' <"$process/cmdline") 2>/dev/null) in
        *python*[/\ ]simagent\ agent\ * | *python*[/\ ]simagent\ run\ *) ;;
        *) continue ;;
        esac
        case $( (tr '\n' '/' <"$process/cgroup") 2>/dev/null) in
        */user@*) return 0 ;;
        '' | */simagent.service/* | */simagent-member.service/*) ;;
        *) return 0 ;;
        esac
    done
    return 1
}

# The shims of steps, and what looks after them in containers. (The brackets: not grep itself.)
simulation_runs() {
    grep -qsaE '[s]him\.pyc|[_]sa_guard' "$proc"/[0-9]*/cmdline
}

# Written over, at one length: this takes no room where /run has become full.
remember() {
    printf '%-160s\n' "$now $dead $looks$actives" 1<>"$mark"
}

ask_systemd
case $can in
yes)
    dead=0 looks=0
    remember
    exit 0
    ;;
unknown)
    actives=${before:+ $before}
    remember
    echo "systemd does not tell how the agent is ($states): this look does not count"
    exit 0
    ;;
esac

limit=$after
if [ $can = boot ]; then
    limit=$((4 * after)) # checking large disks, say, takes its time
elif [ "$before" = boot ]; then
    dead=0 looks=0
fi
dead=$((dead + step)) looks=$((looks + 1))
said="no agent can run since $dead s ($states)"
if somebody_is_here; then
    dead=0 looks=0 said="$said, but somebody is logged in: the machine stays on"
elif agent_by_hand; then
    dead=0 looks=0 said="$said, but one was started by hand: the machine stays on"
elif simulation_runs; then
    looks=0 said="$said, but a simulation does: the machine stays on"
elif [ $dead -lt $limit ]; then
    said="$said: power-off in $((limit - dead)) s"
elif [ $looks -lt $LEAST ]; then
    said="$said: power-off after $((LEAST - looks)) more looks"
elif [ -n "$actives" ] && [ -z "$before" ]; then
    said="$said, but it was started just now: power-off unless it stays"
else
    echo "$said: powering off" >&2
    timeout -k 5 30 systemctl poweroff ||
        timeout -k 5 30 systemctl poweroff --force ||
        timeout -k 5 30 systemctl poweroff --force --force
    exit
fi
remember
echo "$said"
