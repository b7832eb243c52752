#!/bin/sh
# Remove what makes this machine itself, so that it can be copied: identity, keys, logs, traces of how it
# was made. The last that runs before its disk becomes an image; it does not boot itself again before.
set -eu

# Each copy makes its own of these at its first boot.
: >/etc/machine-id
rm -f /var/lib/dbus/machine-id /etc/hostname /etc/ssh/ssh_host_* /var/lib/systemd/random-seed \
    /boot/efi/loader/random-seed /var/lib/systemd/credential.secret
printf '127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n' >/etc/hosts
[ -d /run/systemd/system ] || ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf

# The agent's: of its state only images stay.
[ ! -d /var/lib/simagent ] ||
    find /var/lib/simagent -mindepth 1 -maxdepth 1 ! -name images -exec rm -rf {} +
rm -f /etc/simagent/agent.toml /etc/simagent/agent.env /etc/credstore/simagent.* \
    /etc/credstore.encrypted/simagent.*

# Whoever made the image cannot log in to its copies, and these have none of the keys that it was made
# with, for stores and registries.
for home in /root /home/*; do
    for each in .ssh .bash_history .cache .config .aws .docker .apptainer; do
        rm -rf "${home:?}/$each"
    done
done
rm -f /var/lib/docker/engine-id /etc/docker/key.json
passwd -q -l root 2>/dev/null || true

cloud-init clean --logs --seed >/dev/null 2>&1 || true
rm -rf /var/lib/cloud/* /var/log/journal/* /var/lib/systemd/coredump /var/lib/dhcp/* \
    /var/lib/systemd/timesync /var/lib/systemd/timers
find /var/log -type f -delete
apt-get clean
rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/debconf/*-old /var/lib/dpkg/*-old
rm -rf /tmp/* /usr/sbin/policy-rc.d

# Nothing was installed since: else the first boot would rebuild what was built already.
touch /etc/.updated /var/.updated
