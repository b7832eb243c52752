#!/bin/sh
# What an empty Debian needs to be a machine: kernel, boot loader, network, cloud-init. Runs inside of the
# new tree, once. (A cloud's own Debian has all this: there, vm/provision.sh is enough.)
set -eu
here=$(dirname "$0")
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8

# Nothing is started in here.
printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d

# Before the kernel, whose package reads it: entries of the boot loader do not carry the id of a machine.
cp -r "$here/files/." /
mkdir -p /boot/efi
export SYSTEMD_RELAX_ESP_CHECKS=1 SYSTEMD_ESP_PATH=/boot/efi

echo "Installing the kernel, systemd and cloud-init ..."
apt-get update -qq
apt-get install -qq -y --no-install-recommends \
    linux-image-cloud-amd64 initramfs-tools zstd \
    systemd-sysv systemd-boot systemd-boot-efi systemd-repart systemd-resolved systemd-timesyncd dbus udev kmod \
    cloud-init openssh-server iproute2 iputils-ping netbase ca-certificates e2fsprogs dosfstools \
    tzdata procps less sudo >/var/log/base.log 2>&1 || {
    tail -n 30 /var/log/base.log >&2
    exit 1
}

# The removable path: firmware finds it without an entry of its own.
mkdir -p /boot/efi/EFI/BOOT /boot/efi/loader/entries
cp /usr/lib/systemd/boot/efi/systemd-bootx64.efi /boot/efi/EFI/BOOT/BOOTX64.EFI
printf 'timeout 0\neditor no\n' >/boot/efi/loader/loader.conf
# The kernel's package has made an entry. It names files from where a file system begins, which in here
# is not where it will be.
sed -i 's#\([[:space:]]\)/boot/efi/#\1/#' /boot/efi/loader/entries/*.conf

systemctl -q enable systemd-networkd systemd-resolved systemd-timesyncd ssh systemd-repart
