# shellcheck shell=sh
# Removes what server/once.py has put onto the disk and into the firmware's memory, if anything.
for directory in /boot/grub /boot/grub2 /efi /boot/efi /boot; do
    [ ! -e "$directory/anemos/initrd" ] || rm -rf "$directory/anemos"
    custom=$directory/custom.cfg
    grep -qs '^# anemos: begin' "$custom" || continue
    sed '/^# anemos: begin/,/^# anemos: end/d' "$custom" >"$custom.anemos"
    if [ -s "$custom.anemos" ]; then mv "$custom.anemos" "$custom"; else rm "$custom" "$custom.anemos"; fi
done
vendor=8be4df61-93ca-11d2-aa0d-00e098032b8c
for entry in /sys/firmware/efi/efivars/Boot[0-9A-F][0-9A-F][0-9A-F][0-9A-F]-"$vendor"; do
    tr -d '\0' <"$entry" 2>/dev/null | grep -q 'anemos once' || continue # it is UTF-16
    # BootNext is ours, too: `plan` does not begin when there is one.
    for variable in "$entry" "${entry%/*}/BootNext-$vendor"; do
        [ ! -e "$variable" ] || { chattr -i "$variable" && rm "$variable"; }
    done
done
