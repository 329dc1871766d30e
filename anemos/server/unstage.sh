# shellcheck shell=sh
# Takes back all that a deployment has done to a running system, except the boot entry (disarm.sh).
# $1: who has staged it, "" for whoever it was. $2: name of a base image that may stay for another try.
# Prints "initramfs" where that runs, or what stage.sh has noted, if that was somebody else: nothing is
# changed then. Fails, and says so, when something could not be removed.
owner=/run/anemos.owner
[ ! -e /run/anemos/boot.json ] || { echo initramfs; exit 0; }
[ -e $owner ] || exit 0
read -r _ who _ <$owner
[ -z "$1" ] || [ "$who" = "$1" ] || { cat $owner; exit 0; }

# What enter.sh has started and nobody waits for any more, in any mount namespace.
workers() {
    for process in /proc/[0-9]*; do
        case $(readlink "$process/root") in
        /run/anemos.root*) echo "${process#/proc/}" ;;
        esac
    done
}
forget() {
    # shellcheck disable=SC2016 # $ is for the inner shell
    unshare -m sh -c '
        mount -t squashfs -o loop,ro "$1" /run/anemos.root || exit
        chroot /run/anemos.root kexec --kexec-file-syscall --unload ||
            chroot /run/anemos.root kexec --kexec-syscall --unload
    ' sh "$1"
}
loaded() { [ "$(cat /sys/kernel/kexec_loaded 2>/dev/null)" = 1 ]; }
mounted() { grep -q " $1 $2 " /proc/mounts; }

# The files first: a worker that is just starting finds nothing that it could load.
for file in /run/anemos/*; do
    case $file in /run/anemos/base-*.squashfs) ;; *) rm -rf "$file" ;; esac
done
for _ in $(seq 60); do
    pids=$(workers)
    [ -n "$pids" ] || break
    # shellcheck disable=SC2086 # numbers
    kill -KILL $pids 2>/dev/null
    sleep 1 # the kernel reads hundreds of MiB before it looks
done
for base in /run/anemos/base-*.squashfs /var/lib/anemos/base-*.squashfs; do
    [ ! -e "$base" ] || ! loaded || forget "$base"
done
while mounted /run/initramfs squashfs; do umount -l /run/initramfs || break; done # see jump.sh
if [ -n "$2" ]; then
    for base in /run/anemos/base-*.squashfs; do [ "${base##*/}" = "$2" ] || rm -f "$base"; done
else
    rm -f /run/anemos/base-*.squashfs
    while mounted /run/anemos ramfs; do umount -l /run/anemos || break; done
fi

left=$(
    [ -z "$(workers)" ] || echo "the processes $(workers | tr '\n' ' ')"
    ! loaded || echo "what the kernel has loaded for kexec, secrets included"
    ! mounted /run/initramfs squashfs || echo "/run/initramfs"
    [ -n "$2" ] || ! mounted /run/anemos ramfs || echo "/run/anemos"
)
[ -z "$left" ] || { echo "could not be removed: $left" >&2; exit 1; }
[ -n "$2" ] || rm $owner
