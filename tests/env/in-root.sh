#!/bin/sh
# Run a script in a root without changing it: what is written is in memory, and gone at the end.
# For `unshare --mount --pid --fork`, as root: usage: in-root.sh ROOT FOLDER SCRIPT [ARGUMENT ...]
set -eu
root=$1 folder=$2 script=$3
shift 3
mount -t tmpfs tmpfs "$folder"
mkdir "$folder/changed" "$folder/work" "$folder/root"
mount -t overlay -o "lowerdir=$root,upperdir=$folder/changed,workdir=$folder/work" \
    overlay "$folder/root"
mount -t proc proc "$folder/root/proc"
mount --rbind /dev "$folder/root/dev"
mkdir -p "$folder/root/run"
cp "$script" "$folder/root/run/server.sh"
exec chroot "$folder/root" bash /run/server.sh "$@"
