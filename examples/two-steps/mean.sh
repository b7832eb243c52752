# Ask for a file of numbers, and write their mean to another.
set -eu
printf 'File with the numbers? '
read -r source
printf '\nFile for the mean? '
read -r target
awk '{ sum += $1 } END { printf "%d numbers, mean %.4f\n", NR, sum / NR }' "$source" > "$target"
printf '\n'
cat "$target"
