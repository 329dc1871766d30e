# shellcheck shell=sh
# Makes /run/anemos: memory that is never swapped out (ramfs: kernel, ramfs-rootfs-initramfs.rst),
# for root alone. $1: bytes that are going to be put there.
set -e
umask 077
mkdir -p /run/anemos
if ! grep -q ' /run/anemos ramfs ' /proc/mounts; then
    mount -t ramfs -o mode=700 ramfs /run/anemos
fi
rm -f /run/anemos/layer /run/anemos/payload /run/anemos/initramfs /run/anemos/foundation
available=$(($(sed -n 's/^MemAvailable: *\([0-9]*\) kB/\1/p' /proc/meminfo) * 1024))
if [ "$available" -lt "$1" ]; then
    echo "needs $1 bytes of memory, has $available" >&2
    exit 1
fi
