#!/usr/bin/env bash
# Install what the engine tests need and this machine lacks: Docker Engine, Compose, a registry, Apptainer,
# servers of S3. For Debian and its kin; quick when all is there. Starts nothing.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

root=()
[ "$(id -u)" = 0 ] || root=(sudo)

# A daemon that is packaged beside its command stands in sbin, which is not on everybody's PATH.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

needed=()
need() { # COMMAND PACKAGE
    command -v "$1" >/dev/null || needed+=("$2")
}

need dockerd docker.io
need containerd containerd
need docker-registry docker-registry
need mmdebstrap mmdebstrap
[ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || needed+=(debian-archive-keyring)
need mksquashfs squashfs-tools
need squashfuse squashfuse # without them each start of an Apptainer image unpacks all of it
need fusermount3 fuse3
need mpirun.openmpi openmpi-bin # hosts of ranks are network namespaces:
need ip iproute2
need nft nftables # keeps tasks from a cloud's metadata server
need hostname hostname
docker compose version >/dev/null 2>&1 || need docker-compose docker-compose
need newuidmap uidmap
[ -x /bin/busybox ] && ! ldd /bin/busybox >/dev/null 2>&1 || needed+=(busybox-static)

wants_apptainer=
command -v apptainer >/dev/null || wants_apptainer=yes

if [ ${#needed[@]} -gt 0 ] || [ -n "$wants_apptainer" ]; then
    command -v apt-get >/dev/null || {
        echo "Not on this machine, and there is no apt-get to install it:" \
            "${needed[*]} ${wants_apptainer:+apptainer}" >&2
        exit 1
    }
    "${root[@]}" apt-get update -qq
    apt_install() {
        "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
            apt-get install -qq -y --no-install-recommends "$@" >/dev/null
    }
    if [ ${#needed[@]} -gt 0 ]; then
        echo "Installing ${needed[*]} ..."
        apt_install "${needed[@]}"
    fi
    # In later releases the command is a package of its own.
    command -v docker >/dev/null || apt_install docker-cli
    if [ -n "$wants_apptainer" ]; then
        echo "Installing apptainer ..."
        if apt-cache policy apptainer | grep -q 'Candidate: [0-9]'; then
            apt_install apptainer
        else
            made=$(mktemp -d)
            trap 'rm -rf "$made"' EXIT
            chmod 755 "$made" # apt reads the package as a user of its own
            "$here/apptainer-for-bookworm.sh" "$made"
            apt_install "$made/apptainer.deb"
        fi
    fi
fi

# A simulator whose ranks are programs of the machine; where it is not packaged that is not tested.
command -v icoFoam >/dev/null || ! apt-cache show openfoam >/dev/null 2>&1 || {
    echo "Installing openfoam ..."
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -qq -y --no-install-recommends openfoam >/dev/null
}

# What udev and tzdata see to elsewhere; Apptainer uses the one and insists on the other.
[ ! -e /dev/fuse ] || [ "$(stat -c %a /dev/fuse)" = 666 ] || "${root[@]}" chmod 666 /dev/fuse
[ -e /etc/localtime ] || "${root[@]}" touch /etc/localtime

"$here/vm-tools.sh"
"$here/s3-roots.sh"
