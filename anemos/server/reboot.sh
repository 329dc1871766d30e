# shellcheck shell=sh
# Reboots in good order, after this shell's connection had the time to end.
if [ -d /run/systemd/system ]; then
    systemctl --no-block reboot
else
    setsid sh -c 'sleep 1; reboot' </dev/null >/dev/null 2>&1 &
fi
