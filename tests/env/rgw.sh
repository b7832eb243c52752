#!/bin/bash
# Run Ceph RGW in the foreground, with its monitor and its disk in memory. For a root of its own, which
# s3-servers.sh makes and tests/engines enters: usage: rgw.sh PORT MONITOR_PORT
set -eu
cluster=$(cat /proc/sys/kernel/random/uuid)
disk=$(cat /proc/sys/kernel/random/uuid)
monitor=[v2:127.0.0.1:$2]
keys=/etc/ceph/ceph.client.admin.keyring
mkdir -p /var/lib/ceph/mon/ceph-a /var/lib/ceph/osd/ceph-0 /run/ceph

cat >/etc/ceph/ceph.conf <<END
[global]
fsid = $cluster
mon host = $monitor
mon initial members = a
public addr = 127.0.0.1
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd objectstore = memstore
rgw override bucket index max shards = 1
memstore device bytes = 8589934592
mon allow pool size one = true
mon max pg per osd = 1000
mon data avail crit = 1
# The monitor waits for no more changes to come, of which each pool brings some.
paxos propose interval = 0.01
paxos min wait = 0.01
rgw dns name =
rgw frontends = beast endpoint=127.0.0.1:$1 tcp_nodelay=1
# What tests delete gives its memory back soon.
rgw gc obj min wait = 5
rgw gc processor period = 5
log file = /var/log/ceph.\$name.log
[mon.a]
END

cd / # from where Debian's osd looks for its classes, by a relative path
map=/tmp/monitors
monmaptool --create --addv a "$monitor" --fsid "$cluster" $map >/dev/null
ceph-authtool --create-keyring /tmp/keys --gen-key -n mon. --cap mon 'allow *' >/dev/null
ceph-authtool --create-keyring $keys --gen-key -n client.admin \
    --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *' >/dev/null
ceph-authtool /tmp/keys --import-keyring $keys >/dev/null
ceph-mon --mkfs -i a --monmap $map --keyring /tmp/keys
ceph-mon -i a

ceph osd new "$disk" >/dev/null
ceph osd crush add osd.0 1 root=default host=here
ceph auth get-or-create osd.0 mon 'allow profile osd' osd 'allow *' -o /var/lib/ceph/osd/ceph-0/keyring
ceph-osd -i 0 --mkfs --osd-uuid "$disk"
ceph-osd -i 0

timeout 180 radosgw-admin user create --uid test --display-name test \
    --access-key test --secret-key testtesttest >/dev/null
exec radosgw -f -n client.admin --keyring $keys
