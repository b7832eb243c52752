#!/usr/bin/env bash
# Build simagent's Debian package for the release of Debian (or kin) that this runs on, or for another one
# in a container of Docker's: what is compiled in it belongs to one version of Python.
# usage: build.sh [RELEASE], as in build.sh trixie; prints the package's path last.
#
# In the environment, each with its default:
#   OUT=build/deb     the folder for the package and for what is kept from build to build
#   DEB_REVISION=1    counts packages of one version
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
mkdir -p "${OUT:=$top/build/deb}"
OUT=$(cd "$OUT" && pwd)
export DEB_REVISION=${DEB_REVISION:-1}
umask 022
unset PYTHONPATH PYTHONHOME

fail() {
    echo "make deb: $*" >&2
    exit 1
}
. /etc/os-release
here_is=${VERSION_CODENAME:-$ID}
release=${1:-$here_is}

in_container() {
    local image=simagent/deb-builder:$release base=debian:$release-slim
    docker version >/dev/null 2>&1 ||
        fail "this is $here_is: for $release a Docker Engine is needed (or run it on $release)"
    docker image inspect "$base" >/dev/null 2>&1 || docker pull --quiet "$base" >/dev/null 2>&1 ||
        "$top/containers/base-image.sh" "$release" >&2 # no public registry can be reached
    # The network of the host, so that packages are fetched the way the host does.
    docker build --quiet --network host --build-arg "SUITE=$release" --tag "$image" "$here" \
        2>/dev/null >/dev/null || docker build --network host --build-arg "SUITE=$release" \
        --tag "$image" "$here" >&2
    docker run --rm --network host --user "$(id -u):$(id -g)" --env HOME=/tmp --env DEB_REVISION \
        --env PIP_INDEX_URL --env PIP_EXTRA_INDEX_URL --env OUT=/out \
        --volume "$top:/src:ro" --volume "$OUT:/out" "$image" /src/systemd/debian/build.sh |
        sed "s|^/out/|$OUT/|"
}

if [ "$release" != "$here_is" ]; then
    in_container
    exit
fi

# --- What is to be built -------------------------------------------------------------------------

python=/usr/bin/python3 # Debian's, whatever else is on PATH
command -v dpkg-deb >/dev/null || fail "there is no dpkg-deb: this needs Debian or its kin"
[ -x $python ] && $python -c 'import ensurepip, venv' 2>/dev/null ||
    fail "Debian's Python or its venv is missing: apt-get install python3-venv"
$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "simagent needs Python 3.11 or newer, which $here_is does not have"

minor=$($python -c 'import sys; print(sys.version_info.minor)')
arch=$(dpkg --print-architecture)
field() { # NAME, of pyproject.toml
    $python -c 'import sys, tomllib
print(tomllib.load(open(sys.argv[1], "rb"))["project"][sys.argv[2]])' "$top/pyproject.toml" "$1"
}
case $ID in debian) kin=deb ;; *) kin=$ID ;; esac
version=$(field version)-$DEB_REVISION~$kin${VERSION_ID:-$here_is}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
opt=$root/opt/simagent
modules=$opt/lib/python3.$minor/site-packages
mkdir -p "$root/DEBIAN" "$opt/bin" "$modules"

# --- Python's part -------------------------------------------------------------------------------

# What it depends on is fetched once, and again when that changes.
$python - "$top/pyproject.toml" >"$work/needed" <<'END'
import sys, tomllib
print(*tomllib.load(open(sys.argv[1], "rb"))["project"]["dependencies"], sep="\n")
END
key=1-$(sha256sum <"$work/needed") # counts how they are kept
kept=$OUT/kept/$here_is-$arch-3.$minor
mkdir -p "$kept"
exec 9>"$kept/lock"
flock 9 # others who build the same
pip() {
    "$kept/tools/bin/python" -m pip --disable-pip-version-check --no-input -q "$@"
}
compile() { # MODULES, as they are going to stand
    $python -m compileall -q -j 0 -s "$1" -p "${modules#"$root"}" "$1"
}
if [ "$(cat "$kept/key" 2>/dev/null)" != "$key" ]; then
    echo "Fetching what simagent depends on, for Python 3.$minor ..." >&2
    rm -rf "$kept/key" "$kept/tools" "$kept/modules"
    $python -m venv "$kept/tools"
    pip install hatchling >&2
    pip install --no-compile --target "$kept/modules" --requirement "$work/needed" >&2
    # The commands and the tests of what it depends on are nobody's here.
    rm -rf "$kept/modules/bin"
    find "$kept/modules" -type d \( -name __pycache__ -o -name tests \) -prune -exec rm -rf {} +
    compile "$kept/modules"
    echo "$key" >"$kept/key"
fi
pip wheel --no-deps --no-build-isolation --wheel-dir "$work/wheel" "$top" >&2
cp -a "$kept/modules/." "$modules"
pip install --no-compile --no-deps --no-index --find-links "$work/wheel" \
    --target "$work/simagent" simagent >&2
rm -rf "$work/simagent/bin"
compile "$work/simagent"
cp -a "$work/simagent/." "$modules"

# A virtual environment, as venv makes one; where it stands is written in no other file.
ln -s "/usr/bin/python3.$minor" "$opt/bin/python3"
ln -s python3 "$opt/bin/python"
cat >"$opt/pyvenv.cfg" <<END
home = /usr/bin
include-system-site-packages = false
version = $($python -c 'import platform; print(platform.python_version())')
END
cat >"$opt/bin/simagent" <<'END'
#!/opt/simagent/bin/python3
import sys

from simagent.cli import main

sys.exit(main())
END

# --- systemd's, and papers -----------------------------------------------------------------------

install_to() { # FOLDER FILE ...: those that there are
    local folder=$root$1 file
    shift
    for file; do
        [ ! -f "$file" ] || install -D -m 644 "$file" "$folder/$(basename "$file")"
    done
}
units=$top/systemd
major=${VERSION_ID:-99}
major=${major%%.*}
lib=/usr/lib/systemd
[ "$major" -ge 13 ] || lib=/lib/systemd # as the other packages of Debian 12 have it
install_to $lib/system "$units"/*.{service,timer,slice,mount,socket}
install_to $lib/system-preset "$units"/system-preset/*
install_to /usr/lib/sysusers.d "$units"/sysusers.d/*
install_to /usr/lib/tmpfiles.d "$units"/tmpfiles.d/*
install_to /usr/share/simagent "$units"/agent.toml "$units"/metadata.nft "$units"/deadman.sh
# Keys that systemd 252, Debian 12's, does not know.
if [ "$major" -ge 13 ]; then
    for unit in simagent simagent-member; do
        install_to "$lib/system/$unit.service.d" "$units"/{backoff,00-credentials}.conf
    done
fi
mkdir -p "$root/usr/bin"
ln -s /opt/simagent/bin/simagent "$root/usr/bin/simagent"

papers=/usr/share/doc/simagent
install_to $papers "$top"/docs/*.md "$top/README.md"
install -m 644 "$here/copyright" "$root$papers/copyright"
gzip -9n <"$top/CHANGELOG.md" >"$root$papers/changelog.gz"
{
    printf 'simagent (%s) %s; urgency=medium\n\n' "$version" "$here_is"
    printf '  * simagent %s: changelog.gz tells what is new.\n\n' "$(field version)"
    printf ' -- %s  %s\n' "$(sed -n 's/^Maintainer: //p' "$here/control")" \
        "$(date -u -R -r "$top/CHANGELOG.md")"
} | gzip -9n >"$root$papers/changelog.Debian.gz"
install_to /usr/share/lintian/overrides "$here/lintian/simagent"

# --- The package ---------------------------------------------------------------------------------

# Units that are enabled: what their preset says.
enabled=$(sed -n 's/^enable  *//p' "$units"/system-preset/* | xargs)
users=$(awk '$1 == "u" { print $2 }' "$units"/sysusers.d/* | xargs)
for script in preinst postinst prerm postrm; do
    sed -e "s|@ENABLED@|$enabled|" -e "s|@USERS@|$users|" "$here/$script" >"$root/DEBIAN/$script"
    chmod 755 "$root/DEBIAN/$script"
done
chmod -R u=rwX,go=rX "$root"/[a-z]*
chmod 755 "$opt/bin/simagent"
sed -e "s|@VERSION@|$version|" -e "s|@ARCH@|$arch|" -e "s|@MINOR@|$minor|" \
    -e "s|@NEXT@|$((minor + 1))|" -e "s|@SIZE@|$(du -sk --apparent-size "$root" | cut -f1)|" \
    "$here/control" >"$root/DEBIAN/control"
(cd "$root" && find [a-z]* -type f -exec md5sum {} +) >"$root/DEBIAN/md5sums"

deb=$OUT/simagent_${version}_$arch.deb
# By gzip: a fifth larger than by xz, and made in seconds.
dpkg-deb --root-owner-group -Zgzip -z6 --build "$root" "$work/made.deb" >/dev/null
cp "$work/made.deb" "$deb.part"
mv "$deb.part" "$deb"
echo "$deb"
