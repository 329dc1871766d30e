# shellcheck shell=sh
# After probe.sh: facts about a server. $1: hash of the wanted base image.

# Without what would break the line of a fact, and blanks around it.
plain() { tr -d '\000-\037|' | sed 's/^ *//; s/ *$//'; }
# A variable of UEFI's behind its four bytes of attributes, by od(1). No file to seek in.
variable() {
    file=/sys/firmware/efi/efivars/$1-8be4df61-93ca-11d2-aa0d-00e098032b8c
    shift
    # shellcheck disable=SC2002 # tail would seek in what it opens itself
    [ ! -r "$file" ] || cat "$file" | tail -c +5 | od -An -v "$@" | tr -s ' \n' ' '
}
# Values, separated by |, unless one is missing: a device may go away meanwhile.
whole() { case "|$2|" in *"||"*) ;; *) fact "$1" "$2" ;; esac }
memory() { sed -n "s/^$1: *\([0-9]*\) kB/\1/p" /proc/meminfo; }

fact user "$(id -u)"
# sudo may write down what commands read (sudoers(5), log_input).
if [ -n "${SUDO_USER:-}" ]; then
    case $(sudo -l -U "$SUDO_USER" 2>/dev/null | grep -Eo '!?log_(input|stdin)|\<LOG_INPUT' | tail -n 1) in
    [lL]*) fact sudo_logs yes ;;
    esac
fi
fact name "$(uname -n)"
fact machine "$(uname -m)"
fact memory_total_kib "$(memory MemTotal)"
fact memory_available_kib "$(memory MemAvailable)"
fact kexec_disabled "$(first /proc/sys/kernel/kexec_load_disabled)"
fact lockdown "$(first /sys/kernel/security/lockdown)"
fact efi "$([ -d /sys/firmware/efi ] && echo yes || echo no)"
# It says what systemd-boot starts, before loader.conf does (systemd-boot(7), "EFI Variables").
for file in /sys/firmware/efi/efivars/LoaderEntryDefault-*; do
    [ ! -e "$file" ] || fact loader_default yes
done
# UEFI's boot entries, 16 bit numbers, and what each in the order is for, 32 bits (UEFI specification, 3.1.3, 3.3).
for name in BootNext BootCurrent; do
    numbers=$(variable $name -tx2)
    [ -z "$numbers" ] || fact $name "$numbers"
done
for number in $(variable BootOrder -tx2 | tr a-f A-F); do
    fact option "$number$(variable "Boot$number" -tx4 -N4)"
done
fact secure_boot "$(variable SecureBoot -tu1)"
for container in /run/.containerenv /.dockerenv /run/host/container-manager /proc/user_beancounters; do
    [ ! -e "$container" ] || fact container "$container"
done
container=$(first /run/systemd/container)
[ -n "$container" ] || container=$(first /proc/1/environ | tr '\0' '\n' | sed -n 's/^container=//p')
[ -z "$container" ] || fact container "$container"
# Root of a user namespace (user_namespaces(7)): not the machine's.
outside=$(first /proc/self/uid_map | tr -s ' ' | cut -d ' ' -f 3)
[ "${outside:-0}" = 0 ] || fact container "user namespace"
for module in loop squashfs; do
    if [ -d "/sys/module/$module" ] || grep -q -w "$module" /proc/filesystems ||
        modprobe -n -q "$module" 2>/dev/null; then
        fact module "$module"
    fi
done

# Where a boot entry for once may be put, best first: what starts it, directory, device below, file system, KiB free.
# GRUB's, if it has started this system (its kernel's command line begins so) and reads custom.cfg; the firmware's.
for directory in /boot/grub /boot/grub2 /efi /boot/efi /boot; do
    loader=
    case $(cat /proc/cmdline) in BOOT_IMAGE=*)
        ! grep -qs '^[^#]*source.*custom\.cfg' "$directory/grub.cfg" || loader=grub ;;
    esac
    [ ! -d /sys/firmware/efi ] || [ ! -d "$directory/EFI" ] || loader=firmware
    [ -n "$loader" ] || continue
    [ -w "$directory" ] || continue
    df -Pk "$directory" | tail -n 1 | while read -r _ _ _ free _ point; do
        # Of several mounts there (proc_pid_mountinfo(5)) the last one counts.
        while read -r _ _ number _ at rest; do
            [ "$at" != "$point" ] || found="$number ${rest#* - }"
        done </proc/self/mountinfo
        type=${found#* }
        device=$(readlink "/sys/dev/block/${found%% *}")
        fact entry "$loader|$directory|${device##*/}|${type%% *}|$free"
    done
done

# Disks: name, size in sectors of 512 bytes, serial, WWN, model, separated by |.
for disk in /sys/block/*; do
    case ${disk##*/} in loop* | ram* | zram* | dm-* | md* | sr* | fd* | nbd* | bcache* | zd* | drbd*) continue ;; esac
    # One of several paths to an NVMe disk, which is there itself, too.
    [ "$(first "$disk/hidden")" != 1 ] || continue
    size=$(first "$disk/size")
    [ -n "$size" ] || continue # it has gone away
    serial=$(first "$disk/serial" "$disk/device/serial" | tr -d '\0')
    [ -n "$serial" ] || serial=$(tail -c +5 "$disk/device/vpd_pg80" 2>/dev/null | tr -d '\0')
    serial=$(printf '%s' "$serial" | plain)
    wwn=$(first "$disk/wwid" "$disk/device/wwid" | plain)
    model=$(first "$disk/device/model" | plain)
    # Its slot, as disks.py reads it: place, number on the controller, and the controller's first host.
    place=$(readlink -f "$disk")
    number=$(first "$disk/nsid" "${place%%/host*}"/ata_port/*/port_no)
    hosts=$(for host in "${place%%/host[0-9]*}"/host[0-9]*; do echo "${host##*/host}"; done | sort -n)
    fact slot "${disk##*/}|$place|$number|${hosts%%[!0-9]*}"
    fact disk "${disk##*/}|$size|$serial|$wwn|$model"
done
# What is on them, mounted or not: name, file system or the like, label.
lsblk -nro NAME,FSTYPE,LABEL 2>/dev/null | while read -r line; do fact content "$line"; done
# The kernel's name, file system or the like, UUID: members of one pool have the same.
lsblk -nro KNAME,FSTYPE,UUID 2>/dev/null | sort -u | while read -r name words; do fact identity "$name|$words"; done
# Their partitions: disk, number, start and size in sectors of 512 bytes. What lies on them: device, on what.
for part in /sys/block/*/*/partition; do
    part=${part%/partition}
    disk=${part%/*}
    whole part "${disk##*/}|${part##*/}|$(first "$part/partition")|$(first "$part/start")|$(first "$part/size")"
done
for slave in /sys/block/*/slaves/*; do
    [ -e "$slave" ] || continue
    device=${slave%/slaves/*}
    fact slave "${device##*/}|${slave##*/}"
done
# Arrays that lack a member, or do not run (kernel: admin-guide/md.rst).
for array in /sys/block/md*/md; do
    state="$(first "$array/array_state") $(first "$array/degraded")"
    array=${array%/md}
    case $state in "inactive "* | "clear "* | *" "[1-9]*) fact degraded "${array##*/}" ;; esac
done
# Device-mapper's names: dm-0, vg0-root. LVM's physical volumes, each with the name of its group; no lock is taken.
for name in /sys/block/dm-*/dm/name; do
    device=${name%/dm/name} && whole mapped "${device##*/}|$(first "$name")"
done
pvs --readonly --noheadings --separator '|' -o pv_name,vg_name 2>/dev/null |
    while IFS='| ' read -r node group; do [ -z "$group" ] || fact group "$node|$group"; done
# Mounted block devices: device, mount point, type.
sed -n 's|^\(/dev/[^ ]*\) \([^ ]*\) \([^ ]*\) .*|\1 \2 \3|p' /proc/mounts |
    while read -r node rest; do fact mount "$(readlink -f "$node" || echo "$node") $rest"; done
ip -o addr show scope global 2>/dev/null | sed 's/^[0-9]*: *//; s/ *\\.*//' |
    while read -r line; do fact address "$line"; done
{ ip -4 route show default; ip -6 route show default; } 2>/dev/null |
    while read -r line; do fact route "$line"; done
# The network as server/network.py looks at it, and how the operator came. Not every ip(8) knows JSON.
answer() {
    key=$1
    shift
    said=$(ip "$@" 2>/dev/null | tr -d '\n')
    case $said in '['*']') fact "$key" "$said" ;; esac
}
answer ip_links -json -details address show
for family in 4 6; do
    answer "ip_routes$family" -json "-$family" route show table all
    answer "ip_rules" "-$family" -json rule show
done
fact connection "${SSH_CONNECTION:-}"
# Hardware watchdogs: name, what it is, whether it ticks, whether nothing stops it. IPMI's has no number.
for watchdog in /sys/class/watchdog/*; do
    [ ! -e "$watchdog" ] || fact watchdog "${watchdog##*/}|$(first "$watchdog/identity" | plain)|$(
        first "$watchdog/state")|$(first "$watchdog/nowayout" | tr 01 NY)"
done
ipmi=$(first /sys/module/ipmi_watchdog/parameters/nowayout)
[ -z "$ipmi" ] || fact watchdog "watchdog|IPMI||$ipmi"
# Listening TCP ports, hexadecimal, as /proc/net/tcp has them (proc(5)): state 0A is LISTEN.
cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | sed -n 's/^ *[0-9]*: [0-9A-F]*:\([0-9A-F]*\) [^ ]* 0A .*/\1/p' |
    sort -u | while read -r port; do fact listen "$port"; done

# A base image that is here and whole.
for base in "/var/lib/anemos/base-$1.squashfs" "/run/anemos/base-$1.squashfs"; do
    if [ -n "$1" ] && [ -f "$base" ] && [ "$(sha256sum < "$base" | cut -c -64)" = "$1" ]; then
        fact base "$base"
        break
    fi
done
# The size of what is staged here, and the next deployment does without.
# shellcheck disable=SC2012 # POSIX knows nothing else that tells sizes without reading
[ -e /run/anemos/boot.json ] || ls -ln /run/anemos 2>/dev/null | while read -r _ _ _ _ size _ _ _ name; do
    case $name in "" | "base-$1.squashfs") ;; *) fact left "$size" ;; esac
done
fact end end
