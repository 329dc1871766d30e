# shellcheck shell=sh
# Tells how the boot before this one ended: its journal's last lines, and what the kernel left of a
# panic (kernel: pstore-blk.rst). Prints nothing where neither is kept.
journalctl --boot=-1 --lines=15 --no-pager --quiet --output=short-monotonic 2>/dev/null
for record in /sys/fs/pstore/dmesg-*; do
    [ ! -e "$record" ] || tail -n 20 "$record"
done
exit 0
