# shellcheck shell=sh
# Tells what the journal of the system in a slot says of its last boot: warnings, and its last lines. Prints nothing
# where it keeps none. $1: UUID of its root file system.
# shellcheck disable=SC2016 # $ is for the inner shell
exec unshare -m sh -c '
    set -e
    mkdir -p /run/anemos.slot
    mount -o ro "UUID=$1" /run/anemos.slot >/dev/null
    show() { journalctl --directory=/run/anemos.slot/var/log/journal --boot=-0 --no-pager --quiet --output=short "$@"; }
    show --priority=warning --lines=30
    show --lines=10
' sh "$1" 2>/dev/null
