# shellcheck shell=sh
# Makes /run/anemos: memory that is never swapped out (ramfs: kernel, ramfs-rootfs-initramfs.rst),
# for root alone, for one deployment at a time. $1: bytes that are going to be put there.
# $2, $3: the deployment and who stages it (no blanks), noted in /run/anemos.owner with the time.
set -e
umask 077
owner=/run/anemos.owner
note="$2 $3 $(date -u +%Y-%m-%dT%H:%M:%SZ)"
if ! (set -C; echo "$note" >$owner) 2>/dev/null; then
    read -r deployment who since <$owner
    if [ "$who" != "$3" ]; then
        echo "deployment $deployment of $who is staged here since $since" >&2
        exit 1
    fi
    echo "$note" >$owner
fi
mkdir -p /run/anemos
if ! grep -q ' /run/anemos ramfs ' /proc/mounts; then
    mount -t ramfs -o mode=700 ramfs /run/anemos
fi
available=$(($(sed -n 's/^MemAvailable: *\([0-9]*\) kB/\1/p' /proc/meminfo) * 1024))
if [ "$available" -lt "$1" ]; then
    echo "needs $1 bytes of memory, has $available" >&2
    exit 1
fi
