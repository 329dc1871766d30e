# shellcheck shell=sh
# What runs here and how far it is, as `key=value` lines like facts.sh; nothing is changed.

fact() { printf '%s=%s\n' "$1" "$2"; }
here=/run/anemos

# The record of slots (system/slots.py), if there are any: it lies where fstab(5) says. What is not mounted is mounted
# for this alone.
record() {
    while read -r _ point kind _; do
        case "$point $kind" in "/var/lib/anemos/boot "* | /*" vfat") ;; *) continue ;; esac
        # shellcheck disable=SC2016 # $ is for the inner shell
        unshare -m sh -c '[ -e "$1/anemos-slots" ] || mount -r "$1" || mount "$1"; cat "$1/anemos-slots"' sh "$point" &&
            echo && return
    done </etc/fstab
}

fact boot_id "$(cat /proc/sys/kernel/random/boot_id)"
fact kernel "$(uname -r)"
if [ -e $here/boot.json ]; then
    fact place initramfs
    fact stamp "$(cat $here/boot.json)"
    [ ! -e $here/point-of-no-return ] || fact passed yes
    now=$(cut -d . -f 1 /proc/uptime)
    [ ! -e $here/stay ] || fact stays yes
    fact left $(($(cat $here/deadline) - now))
    fact event "$(grep -v '"event": "log"' $here/events 2>/dev/null | tail -n 1)"
    fact line "$(tail -n 1 $here/log 2>/dev/null)"
else
    fact place system
    fact stamp "$(cat /etc/anemos/deployment.json 2>/dev/null)"
    fact staged "$(cat /run/anemos.owner 2>/dev/null)"
    fact root "$(findmnt -n -o UUID / 2>/dev/null)"
    record 2>/dev/null
fi
fact end end
