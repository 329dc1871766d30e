# shellcheck shell=sh
# What runs here, as `key=value` lines: facts.sh and status.sh begin with this, in the same round trip. A key may stand
# there several times. POSIX shell and what every Linux has; nothing is changed.

fact() { printf '%s=%s\n' "$1" "$2"; }
first() { for file; do [ -r "$file" ] && { cat "$file"; return; }; done 2>/dev/null; }

fact boot_id "$(cat /proc/sys/kernel/random/boot_id)"
fact kernel "$(uname -r)"
# Which system this is: the initramfs of a deployment, or one that was deployed.
if [ -e /run/anemos/boot.json ]; then fact place initramfs; else fact place system; fi
fact stamp "$(first /run/anemos/boot.json /etc/anemos/deployment.json | tr -d '\n')"
# What a deployment has staged here (stage.sh).
fact staged "$(first /run/anemos.owner)"
# The record of slots (system/slots.py), as words. Where nothing has mounted what it lies on, it is mounted here, for
# a moment, and for this shell alone. fstab(5) says what that is: a file system for it, or the EFI system partition.
# What is mounted elsewhere, and may be written to there, cannot be mounted read-only: mount(8) says so on its standard
# output. A stock system is left alone.
[ ! -e /etc/anemos/deployment.json ] || first /etc/fstab | while read -r node point kind _; do
    case "$node $point $kind" in
    "#"*) continue ;;
    *" /var/lib/anemos/boot "* | *" /"*" vfat") ;;
    *) continue ;;
    esac
    # shellcheck disable=SC2016 # $ is for the inner shell
    said=$(unshare -m sh -c '
        [ -e "$1/anemos-slots" ] || [ -e "$1/loader" ] || mount -r "$1" >/dev/null || mount "$1" >/dev/null
        cat "$1/anemos-slots" "$1/loader/loader.conf" | head -c 512' sh "$point" 2>/dev/null | tr '\n' ' ')
    case $said in "# GRUB Environment Block "*) fact record "$said" && break ;; esac
done
