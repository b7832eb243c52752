#!/usr/bin/env bash
# Make debian:SUITE-slim in the Docker Engine that DOCKER_HOST names, from Debian's packages: for
# machines that reach no public registry. usage: base-image.sh SUITE ...
set -euo pipefail

command -v mmdebstrap >/dev/null || {
    echo "mmdebstrap is missing (make engines installs it)" >&2
    exit 1
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"

options=(--quiet --variant=minbase --setup-hook='mkdir -p "$1/etc/apt/apt.conf.d"')
for left_out in man locale doc; do
    options+=(--dpkgopt="path-exclude=/usr/share/$left_out/*")
done
options+=(--dpkgopt='path-include=/usr/share/doc/*/copyright')

# No service is started where packages are installed, and no lists of packages are kept in two forms.
cat >"$work/tidy" <<'END'
set -e
printf '#!/bin/sh\nexit 101\n' >"$1/usr/sbin/policy-rc.d"
chmod 755 "$1/usr/sbin/policy-rc.d"
printf '%s\n' 'Dir::Cache::pkgcache "";' 'Dir::Cache::srcpkgcache "";' \
    'DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb || true"; };' \
    >"$1/etc/apt/apt.conf.d/small-image"
rm -f "$1"/var/cache/apt/*.bin
# Certificates that this machine trusts beside the public ones, as those of an inspecting proxy.
if [ -n "$(find /usr/local/share/ca-certificates -name '*.crt' 2>/dev/null)" ]; then
    mkdir -p "$1/usr/local/share/ca-certificates" "$1/etc/ssl/certs"
    cp /usr/local/share/ca-certificates/*.crt "$1/usr/local/share/ca-certificates/"
    cp /etc/ssl/certs/ca-certificates.crt "$1/etc/ssl/certs/"
fi
END
chmod 755 "$work/tidy"
options+=(--customize-hook="$work/tidy")

# How this machine's apt takes the dates of an archive, where that is set.
apt-config dump --format '%f "%v";%n' Acquire::Check-Valid-Until Acquire::Check-Date |
    grep -v '""' >"$work/host.conf" || true
[ ! -s "$work/host.conf" ] || options+=(--aptopt="$work/host.conf")

for suite; do
    echo "Making debian:$suite-slim ..."
    mmdebstrap "${options[@]}" "$suite" "$work/$suite.tar"
    docker import --change 'CMD ["bash"]' "$work/$suite.tar" "debian:$suite-slim" >/dev/null
    rm "$work/$suite.tar"
done
