# shellcheck shell=sh
# Runs the Python part of Anemos on this system: the base image is mounted and chrooted into, in a
# mount namespace of its own, so everything is gone with the command. The old system is at /host.
# $1: the base image. `python3 -m anemos.server` reads the request from its input.
set -e
# The kernel, out of memory, ends this before anything that serves (proc_pid_oom_score_adj(5)).
echo 1000 2>/dev/null >/proc/self/oom_score_adj || :
modprobe -a loop squashfs 2>/dev/null || :
mkdir -p /run/anemos.root
# shellcheck disable=SC2016 # $ is for the inner shell
exec unshare -m sh -c '
    set -e
    root=/run/anemos.root
    { # standard output is for the answer alone; mount(8) warns there
        mount -t squashfs -o loop,ro "$1" "$root"
        mount -t tmpfs tmpfs "$root/tmp"
        mount -o rbind / "$root/host"
        for directory in proc sys dev run; do
            mount -o rbind "/$directory" "$root/$directory"
        done
    } >&2
    # No variable of the login comes along: PYTHONHOME, LD_PRELOAD.
    exec env -i PATH="$PATH:/usr/sbin:/usr/bin:/sbin:/bin" HOME=/root SSH_CONNECTION="$SSH_CONNECTION" \
        SUDO_USER="${SUDO_USER:-root}" chroot "$root" python3 -B -m anemos.server
' sh "$1"
