#!/usr/bin/env bash
# Make FOLDER/apptainer.deb: the package of Debian sid, changed so that it runs on Debian 12.
# An aid for test machines, where nothing else brings Apptainer: usage: apptainer-for-bookworm.sh FOLDER
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$1"

mkdir -p lists/partial cache
mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Origin: Debian' |
    grep -v security | head -n 1)
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${mirror:?no Debian mirror} sid main" \
    >sources.list
apart=(-o "Dir::Etc::SourceList=$PWD/sources.list" -o Dir::Etc::SourceParts=/dev/null
    -o "Dir::State::Lists=$PWD/lists" -o "Dir::Cache=$PWD/cache"
    -o APT::Sandbox::User=root -o Acquire::Languages=none -qq)
apt-get "${apart[@]}" update
apt-get "${apart[@]}" download apptainer

dpkg-deb -R apptainer_*.deb tree
python3 "$here/for_older_glibc.py" tree/usr/bin/apptainer tree/usr/lib/*/apptainer/bin/starter
sed -i -e 's/libc6 (>= 2\.38)/libc6 (>= 2.36)/' -e '/^Version:/s/$/+bookworm1/' tree/DEBIAN/control
(cd tree && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | xargs -0 md5sum >DEBIAN/md5sums)
dpkg-deb -Zgzip -z1 --root-owner-group -b tree apptainer.deb >/dev/null
