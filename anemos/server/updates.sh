# shellcheck shell=sh
# Security updates that are not installed, as `key=value` lines; apt may renew its own cache, and no more. Only Debian
# and its like tell them apart. It goes by the lists that the server has; without them it says nothing.

fact() { printf '%s=%s\n' "$1" "$2"; }
lists=/var/lib/apt/lists
export LC_ALL=C

set -- "$lists"/*-security_*Release
[ -e "$1" ] || exit 0
said=$(apt-get -s -o Debug::NoLocking=true dist-upgrade) || exit 0
# "Inst NAME [OLD] (NEW ORIGIN:VERSION/ARCHIVE, ... [ARCHITECTURE])"
fact security "$(printf '%s\n' "$said" | sed -n 's/^Inst [^(]*(//p' | grep -c -e 'Debian-Security:' -e '-security[], ]')"
fact lists "$(stat -c %Y "$lists/partial" "$@" 2>/dev/null | sort -n | tail -n 1)"
