#!/bin/sh
# Make a Debian machine one that runs simulations: the agent, Apptainer, MPI, Docker if wanted, images of
# simulators. Runs as root, inside of the tree of a disk (vm/build.sh) or on a live machine (vm/packer).
# Without an agent's configuration in the end: each machine gets its own (docs/vm.md).
#
#   AGENT=FILE.deb        the agent's package, as `make deb` makes it
#   APPTAINER=apt         Debian's package: of this release, or else of sid, that one package alone;
#                         or FILE.deb, https://...deb, none
#   MPI=openmpi-bin       packages with an mpirun; empty: none
#   DOCKER=               yes: Docker Engine, too
#   IMAGES=               images of simulators to have here: FILE.sif, docker://..., by blanks
#   DEADMAN=yes           power off a machine whose agent could not run for half an hour; or no
set -eu
here=$(cd "$(dirname "$0")" && pwd)
AGENT=${AGENT:-} APPTAINER=${APPTAINER-apt} MPI=${MPI-openmpi-bin} DOCKER=${DOCKER:-} IMAGES=${IMAGES:-}
DEADMAN=${DEADMAN:-yes}
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8

fail() {
    echo "vm/provision.sh: $*" >&2
    exit 1
}
log=/var/log/simagent-provision.log
install() {
    apt-get install -qq -y --no-install-recommends "$@" >"$log" 2>&1 || {
        tail -n 30 "$log" >&2
        fail "not installed: $*"
    }
}
is_packaged() {
    apt-cache policy "$1" | grep -q 'Candidate: [0-9]'
}

[ "$(id -u)" = 0 ] || fail "has to run as root"
[ -e /etc/debian_version ] || fail "is for Debian"
for image in $IMAGES; do
    case $image in *.sif) [ -f "$image" ] || fail "IMAGES: $image: no such file" ;; esac
done
apt-get update -qq

# Of sid nothing but Apptainer is taken, and what it insists on there.
with_sid() {
    . /etc/os-release
    [ "$ID" = debian ] || fail "there is no apptainer in $PRETTY_NAME: name a package, APPTAINER=FILE.deb"
    mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -v security | head -n 1)
    cat >/etc/apt/sources.list.d/sid.sources <<END
Types: deb
URIs: $mirror
Suites: sid
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
END
    cat >/etc/apt/preferences.d/sid <<END
Package: *
Pin: release n=sid
Pin-Priority: -1

Package: apptainer
Pin: release n=sid
Pin-Priority: 500
END
    apt-get update -qq
}

case $APPTAINER in
none) ;;
*)
    echo "Installing Apptainer ..."
    case $APPTAINER in
    apt)
        is_packaged apptainer || with_sid
        apptainer=apptainer
        ;;
    http*.deb)
        apptainer=/var/tmp/apptainer.deb
        install curl ca-certificates
        curl -fsSL --retry 3 -o $apptainer "$APPTAINER" || fail "APPTAINER=$APPTAINER: not downloaded"
        ;;
    *.deb)
        [ -f "$APPTAINER" ] || fail "APPTAINER=$APPTAINER: no such file"
        apptainer=$APPTAINER
        ;;
    *) fail "APPTAINER=$APPTAINER: apt, FILE.deb, https://...deb or none" ;;
    esac
    # What it uses without any privilege, and what makes images start without being unpacked.
    install "$apptainer" squashfuse fuse3 fuse2fs uidmap squashfs-tools tzdata
    rm -f /var/tmp/apptainer.deb
    ;;
esac

[ -z "$MPI" ] || {
    echo "Installing $MPI ..."
    # By blanks.
    install $MPI
}
case $DOCKER in
yes)
    echo "Installing Docker ..."
    install docker.io docker-cli
    ;;
"" | no) ;;
*) fail "DOCKER=$DOCKER: yes or no" ;;
esac

[ -z "$AGENT" ] || {
    echo "Installing the agent ..."
    [ -f "$AGENT" ] || fail "AGENT=$AGENT: no such file"
    # The metadata address is closed to tasks by nft.
    install "$AGENT" nftables
    simagent --version
    case $DEADMAN in
    yes) systemctl -q enable simagent-deadman.timer ;;
    no) systemctl -q disable simagent-deadman.timer ;;
    *) fail "DEADMAN=$DEADMAN: yes or no" ;;
    esac
}
cp -r "$here/files/." /

# A machine that is paid for by the second has other work than this.
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer man-db.timer \
    e2scrub_all.timer e2scrub_reap.service; do
    systemctl -q disable "$unit" 2>/dev/null || true
done

images=/usr/share/simagent/images
for image in $IMAGES; do
    echo "Adding $image ..."
    case $image in
    *.sif)
        mkdir -p $images
        cp "$image" $images/
        chmod 644 "$images/$(basename "$image")"
        ;;
    *) simagent images pull --runtime apptainer --pin "$image" ;;
    esac
done
