#!/usr/bin/env bash
# Install what vm/build.sh makes disks with, and QEMU with the firmware to boot them. For Debian and its
# kin; quick when all is there.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

needed=()
need() { # COMMAND PACKAGE
    command -v "$1" >/dev/null || needed+=("$2")
}
need mmdebstrap mmdebstrap
need sfdisk fdisk
need mkfs.ext4 e2fsprogs
need mkfs.vfat dosfstools
need mcopy mtools
need qemu-img qemu-utils
need newuidmap uidmap
need qemu-system-x86_64 qemu-system-x86
[ -e /usr/share/OVMF/OVMF_CODE_4M.fd ] || [ -e /usr/share/OVMF/OVMF_CODE.fd ] || needed+=(ovmf)
[ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || needed+=(debian-archive-keyring)
[ ${#needed[@]} -gt 0 ] || exit 0

command -v apt-get >/dev/null || {
    echo "Not on this machine, and there is no apt-get to install it: ${needed[*]}" >&2
    exit 1
}
root=()
[ "$(id -u)" = 0 ] || root=(sudo)
echo "Installing ${needed[*]} ..."
"${root[@]}" apt-get update -qq
"${root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -qq -y --no-install-recommends "${needed[@]}" >/dev/null
