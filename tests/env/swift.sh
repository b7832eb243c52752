#!/bin/bash
# Run OpenStack Swift with its S3 API in the foreground, on one folder. For a root of its own, which
# s3-roots.sh makes and tests/engines enters: usage: swift.sh PORT ACCOUNT_PORT CONTAINER_PORT OBJECT_PORT
set -eu
settings=/etc/swift
mkdir -p /srv/node/d1 /var/cache/swift
chown -R swift: /srv/node /var/cache/swift
cd $settings

cat >swift.conf <<END
[swift-hash]
swift_hash_path_suffix = a
swift_hash_path_prefix = b
[storage-policy:0]
name = p0
default = yes
END

defaults() { # PORT
    printf '[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = %s\nuser = swift\nworkers = 0\n' "$1"
    printf 'log_level = WARNING\nlog_address = /dev/null\n'
}

run_server() { # KIND PORT
    swift-ring-builder "$1.builder" create 4 1 1 >/dev/null
    swift-ring-builder "$1.builder" add "r1z1-127.0.0.1:$2/d1" 1 >/dev/null
    swift-ring-builder "$1.builder" rebalance >/dev/null || [ $? = 1 ] # of one device there are warnings
    {
        defaults "$2"
        printf 'devices = /srv/node\nmount_check = false\nfallocate_reserve = 0\n'
        printf '[pipeline:main]\npipeline = %s-server\n' "$1"
        printf '[app:%s-server]\nuse = egg:swift#%s\n' "$1" "$1"
    } >"$1-server.conf"
    "swift-$1-server" "$settings/$1-server.conf" &
}
run_server account "$2"
run_server container "$3"
run_server object "$4"

filters="catch_errors cache listing_formats s3api tempauth bulk slo dlo symlink versioned_writes"
{
    defaults "$1"
    printf '[pipeline:main]\npipeline = %s proxy-server\n' "$filters"
    for filter in $filters; do
        egg=$filter
        [ $filter != cache ] || egg=memcache
        printf '[filter:%s]\nuse = egg:swift#%s\n' "$filter" "$egg"
        case $filter in
        s3api) printf 'location = us-east-1\ns3_acl = no\n' ;;
        tempauth) printf 'user_test_test = testtesttest .admin\n' ;;
        versioned_writes) printf 'allow_object_versioning = true\n' ;;
        esac
    done
    printf '[app:proxy-server]\nuse = egg:swift#proxy\n'
    printf 'account_autocreate = true\nallow_account_management = true\n'
} >proxy-server.conf
exec swift-proxy-server $settings/proxy-server.conf
