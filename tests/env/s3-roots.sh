#!/usr/bin/env bash
# Make roots of S3 servers that Debian 12 has no package of, or none that would do, from the packages of
# other releases: build/engines/roots/rgw, Ceph RGW of sid, and .../swift, OpenStack Swift of trixie.
# tests/engines enters them; s3-server.sh runs there. Quick when they are there. Starts nothing.
set -euo pipefail
cd "$(dirname "$0")/../.."

root=()
[ "$(id -u)" = 0 ] || root=(sudo)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"

options=(--quiet --variant=apt --mode=root --format=directory
    --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Languages "none"')
for left_out in man locale doc; do
    options+=(--dpkgopt="path-exclude=/usr/share/$left_out/*")
done
# How this machine's apt takes the dates of an archive, where that is set.
apt-config dump --format '%f "%v";%n' Acquire::Check-Valid-Until Acquire::Check-Date |
    grep -v '""' >"$work/host.conf" || true
[ ! -s "$work/host.conf" ] || options+=(--aptopt="$work/host.conf")

make_root() { # NAME SUITE PACKAGES
    local made=build/engines/roots/$1
    [ ! -d "$made" ] || return 0
    echo "Making a root of Debian $2 with ${3//,/, } ..."
    mkdir -p "${made%/*}"
    "${root[@]}" rm -rf "$made.part" # of a run that was cut off
    "${root[@]}" mmdebstrap "${options[@]}" --include="$3" "$2" "$made.part"
    "${root[@]}" mv "$made.part" "$made"
}

make_root rgw sid ceph-mon,ceph-osd,ceph-common,radosgw
make_root swift trixie swift-account,swift-container,swift-object,swift-proxy
