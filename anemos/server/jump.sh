# shellcheck shell=sh
# Jumps into the loaded kernel, after this shell's connection had the time to end.
# $1: the base image.
#
# With systemd the old system ends in good order: all services stop, file systems are unmounted, and
# then /run/initramfs/shutdown runs, which is the base image's (systemd-shutdown(8), "exitrd").
# Without it, the services stop as OpenRC has it (its inittab), or as the scripts of runlevel 6 have it
# up to the one that ends all processes; all are told to end, and made to after 10 s; then file
# systems are synced and made read-only. What fails, ends in an ordinary reboot.
set -e
[ "$(cat /sys/kernel/kexec_loaded)" = 1 ]
mkdir -p /run/initramfs
mount -t squashfs -o loop,ro "$1" /run/initramfs
if [ -d /run/systemd/system ]; then
    systemctl --no-block reboot
else
    # In a mount namespace of its own: OpenRC unmounts the base image, too.
    # shellcheck disable=SC2016 # $ is for the inner shell
    setsid unshare -m sh -c '
        sleep 1
        if [ -d /run/openrc ]; then
            timeout 120 nsenter -t 1 -m openrc shutdown
        else
            for script in /etc/rc6.d/K*; do
                case $script in *sendsigs | *reboot) break ;; esac
                timeout 60 "$script" stop
            done
        fi
        kill -TERM -1 # except the first process and this one: kill(2)
        sleep 10
        kill -KILL -1
        (sleep 300; echo b >/proc/sysrq-trigger) & # a dead device may keep sync waiting
        sync
        echo u > /proc/sysrq-trigger
        sleep 2
        for directory in proc sys dev; do mount -o rbind /$directory /run/initramfs/$directory; done
        chroot /run/initramfs /shutdown reboot
        reboot
    ' </dev/null >/dev/null 2>&1 &
fi
