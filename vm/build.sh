#!/usr/bin/env bash
# Build a Debian disk with the agent, which boots under UEFI and awaits its configuration.
#
# All that can be chosen is in variables, each with its default:
#   OUT=build/vm          the folder for simagent.raw and simagent.qcow2
#   SUITE=trixie          Debian's release
#   SIZE=                 MB of the disk; default: what is in it and half a GB (it grows at boot)
#   FORMATS="raw qcow2"   what to keep
# and those of vm/provision.sh: AGENT APPTAINER MPI DOCKER IMAGES DEADMAN.
#
# As root, or as anyone with subordinate ids (/etc/subuid). Needs no loop devices.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
PATH=$PATH:/usr/sbin:/sbin

OUT=${OUT:-$here/../build/vm}
SUITE=${SUITE:-trixie}
SIZE=${SIZE:-}
FORMATS=${FORMATS:-raw qcow2}
AGENT=${AGENT:-}
APPTAINER=${APPTAINER-apt}
MPI=${MPI-openmpi-bin}
DOCKER=${DOCKER:-}
IMAGES=${IMAGES:-}
DEADMAN=${DEADMAN:-yes}

fail() {
    echo "vm/build.sh: $*" >&2
    exit 1
}
tell() {
    printf '%4d s  %s\n' "$SECONDS" "$*"
}

# What is read from within the tree while it is made lies in this folder there.
inside=/var/tmp/simagent-vm
bring() { # FILE: prints its path inside
    cp --reflink=auto "$1" "$work/in/"
    echo "$inside/$(basename "$1")"
}

check_settings() {
    case "$SIZE" in *[!0-9]*) fail "SIZE=$SIZE: not a number of MB" ;; esac
    for format in $FORMATS; do
        case $format in raw | qcow2) ;; *) fail "FORMATS=$format: raw, qcow2, or both" ;; esac
    done
    [ -n "$AGENT" ] || fail "AGENT: name the agent's package, or use make vm-image"
    [ -f "$AGENT" ] || fail "AGENT=$AGENT: no such file"
    case $APPTAINER in
    apt | none | http*://*.deb) ;;
    *.deb) [ -f "$APPTAINER" ] || fail "APPTAINER=$APPTAINER: no such file" ;;
    *) fail "APPTAINER=$APPTAINER: apt, FILE.deb, https://...deb or none" ;;
    esac
    for image in $IMAGES; do
        case $image in *.sif) [ -f "$image" ] || fail "IMAGES: $image: no such file" ;; esac
    done
    case $DOCKER in "" | yes | no) ;; *) fail "DOCKER=$DOCKER: yes or no" ;; esac
    case $DEADMAN in yes | no) ;; *) fail "DEADMAN=$DEADMAN: yes or no" ;; esac
}

check_machine() {
    for tool in mmdebstrap:mmdebstrap sfdisk:fdisk mkfs.ext4:e2fsprogs mkfs.vfat:dosfstools \
        mcopy:mtools qemu-img:qemu-utils; do
        command -v "${tool%%:*}" >/dev/null ||
            fail "there is no ${tool%%:*}: apt-get install ${tool#*:} (or all: make vm-tools)"
    done
    [ "$(dpkg --print-architecture)" = amd64 ] || fail "the disk is for amd64, and made there"
    [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] ||
        fail "Debian's keys are not here: apt-get install debian-archive-keyring"
}

# A function, so that all of this is read before anything is done.
main() {
    check_settings
    check_machine
    mkdir -p "$OUT"
    OUT=$(cd "$OUT" && pwd)
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    chmod 755 "$work"

    mkdir "$work/in"
    cp -r "$here/provision.sh" "$here/seal.sh" "$here/files" "$here/disk" "$work/in/"
    AGENT=$(bring "$AGENT")
    case $APPTAINER in *://*) ;; *.deb) APPTAINER=$(bring "$APPTAINER") ;; esac
    brought=()
    for image in $IMAGES; do
        case $image in *.sif) image=$(bring "$image") ;; esac
        brought+=("$image")
    done
    {
        printf '%s=%q\n' AGENT "$AGENT" APPTAINER "$APPTAINER" MPI "$MPI" DOCKER "$DOCKER"
        printf '%s=%q\n' IMAGES "${brought[*]}" DEADMAN "$DEADMAN"
        printf 'export AGENT APPTAINER MPI DOCKER IMAGES DEADMAN\n'
    } >"$work/in/settings"

    # The disk is written by the last hook: what mmdebstrap would tidy up after it does not matter.
    options=(--quiet --variant=minbase --format=null --skip=cleanup)
    for left_out in man locale doc; do
        options+=(--dpkgopt="path-exclude=/usr/share/$left_out/*")
    done
    options+=(--dpkgopt='path-include=/usr/share/doc/*/copyright' --dpkgopt='path-include=/usr/share/doc/simagent/*')
    # How this machine's apt takes the dates of an archive, where that is set.
    apt-config dump --format '%f "%v";%n' Acquire::Check-Valid-Until Acquire::Check-Date |
        grep -v '""' >"$work/host.conf" || true
    [ ! -s "$work/host.conf" ] || options+=(--aptopt="$work/host.conf")

    # Written to from a namespace in which this user is another one.
    raw=$OUT/simagent.raw.part
    rm -f "$raw"
    : >"$raw"
    chmod 666 "$raw"
    export SIMAGENT_VM_RAW=$raw SIMAGENT_VM_SIZE=$SIZE
    tell "Debian $SUITE ..."
    mmdebstrap "${options[@]}" \
        --customize-hook="mkdir -p \"\$1$inside\"" \
        --customize-hook="tar -C '$work/in' -c . | tar -C \"\$1$inside\" --no-same-owner -x" \
        --customize-hook="chroot \"\$1\" sh $inside/disk/base.sh" \
        --customize-hook="chroot \"\$1\" sh -c '. $inside/settings; exec sh $inside/provision.sh'" \
        --customize-hook="chroot \"\$1\" sh $inside/seal.sh" \
        --customize-hook="rm -rf \"\$1$inside\" \"\$1\"/etc/apt/apt.conf.d/*mmdebstrap" \
        --customize-hook="unshare --mount sh $here/disk/write.sh \"\$1\"" \
        "$SUITE" /dev/null 2>&1 | while IFS= read -r line; do tell "$line"; done
    chmod 644 "$raw"

    for format in $FORMATS; do
        [ "$format" != qcow2 ] || {
            tell "qcow2 ..."
            qemu-img convert -c -O qcow2 -o compression_type=zstd "$raw" "$OUT/simagent.qcow2.part"
            mv "$OUT/simagent.qcow2.part" "$OUT/simagent.qcow2"
        }
    done
    case " $FORMATS " in *" raw "*) mv "$raw" "$OUT/simagent.raw" ;; *) rm "$raw" ;; esac
    for format in $FORMATS; do
        file=$OUT/simagent.$format
        tell "$file: $(($(stat -c %s "$file") / 1000000)) MB, of them on disk $(du -m "$file" | cut -f1)"
    done
}

main
