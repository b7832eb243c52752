#!/bin/sh
# Write a tree to a disk: GPT, an EFI system partition of what is in /boot/efi, a root partition of the
# rest. Runs as root of a mount namespace of its own. usage: write.sh TREE
set -eu
tree=$1 raw=$SIMAGENT_VM_RAW size=$SIMAGENT_VM_SIZE
work=$(mktemp -d)
trap 'umount "$work/tree" 2>/dev/null || true; rm -rf "$work"' EXIT

# Without what is mounted in it, as /proc.
mkdir "$work/tree"
mount --bind "$tree" "$work/tree"

esp_at=1 esp_size=256
used=$(du -sm "$work/tree" | cut -f1)
least=$((esp_at + esp_size + used * 108 / 100 + 128 + 1))
[ -n "$size" ] || size=$((least + 512))
[ "$size" -ge "$least" ] || {
    echo "SIZE=$size: $least MB are needed at least" >&2
    exit 1
}
root_at=$((esp_at + esp_size)) root_size=$((size - esp_at - esp_size - 1))
echo "Writing a disk of $size MB, $used of them used ..."
truncate -s "${size}M" "$raw"
# The types by which systemd knows them; sectors of 512 bytes.
sfdisk -q "$raw" <<END
label: gpt
start=$((esp_at * 2048)), size=$((esp_size * 2048)), type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name=esp
start=$((root_at * 2048)), size=$((root_size * 2048)), type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, name=root
END

esp=$work/esp
truncate -s "${esp_size}M" "$esp"
mkfs.vfat -F 32 -n ESP "$esp" >/dev/null
for entry in "$work/tree/boot/efi"/*; do
    mcopy -s -i "$esp" "$entry" ::
done
dd if="$esp" of="$raw" bs=1M seek=$esp_at conv=notrunc,sparse status=none
rm -r "$esp" "$work/tree/boot/efi"/*

mkfs.ext4 -q -F -L simagent-root -d "$work/tree" -E offset=$((root_at * 1048576)) "$raw" "${root_size}M"
