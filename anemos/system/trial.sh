#!/bin/sh
# PID 1 of a slot's system on trial: it leaves a guard behind and becomes the real init. The installation puts it at
# /usr/lib/anemos/trial. Only the jump's kernel command line names it (server/trial.py): no later boot has a guard.
#
# The guard resets the machine at the deadline, and the boot loader starts the old system. Only the word prevents that:
# /run/anemos.word with the deployment's id. The guard is a child of PID 1 and belongs to no service. So it outlives an
# emergency mode, a dead network, and a service manager that hangs. A shutdown ends it, as it ends everything.
#
# It needs no disk to reset: the timer starts all its programs at once. A disk that hangs may keep the watch from
# petting the hardware watchdog. Then that resets the machine.
#
# Kernel command line: anemos.trial=SECONDS, anemos.deployment=ID; an init= of the slot's own names the real init. With
# anemos.ports=PORT,PORT only these, SSH's, are let in until the word. With anemos.confirm the guard starts a program
# beside it, `confirm`, which may give the word.

export PATH=/usr/sbin:/usr/bin:/sbin:/bin
WORD=/run/anemos.word
WATCHDOG=/dev/watchdog0
STUCK=/sys/class/watchdog/watchdog0/nowayout
GRACE=5 # seconds to write to the disk before the reset

say() { echo "anemos: $*" >&3; }

# It resets by sysrq, which asks nobody (kernel: admin-guide/sysrq.rst). The sync goes on in the background. When
# somebody ends a sleep, the reset comes early.
timer() {
    sleep "$seconds" &
    first=$!
    sleep $((seconds + GRACE)) &
    second=$!
    trap 'kill $first $second; exit' TERM
    wait $first
    say "no word within $seconds s: back to the old system"
    echo s >&4
    wait $second
    echo b >&4
}

# An interactive nft(8) reads what the guard writes. It owns the table (Linux 5.12): nobody else can change it, and
# `flush ruleset` leaves it out. nft ends with the guard, and the table with nft.
#
# The chain comes after conntrack, and before addresses are translated: ports of containers are closed, too. DHCP may go
# on; 1 and 58 are ICMP.
TABLE='inet anemos_trial'
rules() {
    echo "add table $TABLE { flags owner; chain in { type filter hook prerouting priority -150; policy drop;" \
        'iifname "lo" accept; ct state established,related accept; meta l4proto { 1, 58 } accept;' \
        "udp dport { 68, 546 } accept; tcp dport { $ports } accept; }; }"
}

# Wait for it: the kernel may have to load modules first.
held() {
    tries=0
    until nft list table "$TABLE" >/dev/null 2>&1; do
        [ $((tries += 1)) -lt 300 ] || return 1
        sleep 0.1
    done
}

word() { read -r given <$WORD && [ "$given" = "$id" ]; }

# A watchdog that could not be disarmed again stays as it is. One whose driver comes later is taken later.
pet() {
    if [ -z "$armed" ] && [ -e $WATCHDOG ] && read -r stuck <$STUCK && [ "$stuck" = 0 ]; then
        command exec 5>$WATCHDOG && armed=yes
    fi
    [ -z "$armed" ] || echo >&5
}

guard() {
    trap '' HUP PIPE # of a console that goes away, of nft
    echo -1000 >/proc/self/oom_score_adj
    timer &
    timer=$!
    armed=
    [ -z "$ports" ] || rules
    if [ -n "$confirm" ]; then "${0%/*}/confirm" >/dev/null 3>&- 4>&- & fi
    until word; do
        kill -0 $timer || { say "the timer was ended: back to the old system" && echo b >&4; }
        echo || { say "nobody keeps clients out: back to the old system" && echo b >&4; }
        pet
        # A panic has to end in a reset, whatever sysctl.d says.
        read -r panic </proc/sys/kernel/panic
        [ "$panic" != 0 ] || echo 10 >/proc/sys/kernel/panic
        sleep 2
    done
    kill $timer
    [ -z "$armed" ] || printf V >&5 # "magic close" (kernel: watchdog/watchdog-api.rst)
    say "the word was given: deployment $id stays"
}

set -f
init=/sbin/init
ports=
confirm=
read -r line </proc/cmdline
for each in $line; do
    case $each in
    anemos.trial=*) seconds=${each#*=} ;;
    anemos.deployment=*) id=${each#*=} ;;
    anemos.ports=*) ports=${each#*=} ;;
    anemos.confirm) confirm=yes ;;
    init=*) [ "${each#*=}" = "$0" ] || init=${each#*=} ;;
    esac
done
# No trial without a guard: if PID 1 ends here, the kernel panics, and that is a reset (panic=10).
[ "$seconds" -gt 0 ] && [ -n "$id" ] && [ -w /dev/kmsg ] && [ -w /proc/sysrq-trigger ] || exit 1
watched() { guard </dev/null 2>/dev/null 3>/dev/kmsg 4>/proc/sysrq-trigger; }
if [ -z "$ports" ]; then
    watched >/dev/null &
else
    watched | HOME=/nowhere nft -I "$0" -i >/dev/null 2>&1 & # -I: server/trial.py finds it by that
    held || exit 1
fi
exec "$init" "$@"
