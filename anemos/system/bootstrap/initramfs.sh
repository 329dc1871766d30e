# shellcheck shell=sh
# The last step of mmdebstrap, in the chroot. Until then INITRD=No kept the kernel's hooks from making an initramfs
# before everything that goes into it is there, and a trigger from making it again (initramfs-tools(7),
# update-initramfs(8)). This is what a kernel package's postinst does.
set -e
for kernel in /boot/vmlinuz-*; do
    if [ -e "$kernel" ] && [ -d /etc/kernel/postinst.d ]; then
        version=${kernel#/boot/vmlinuz-}
        export DEB_MAINT_PARAMS="'configure' ''"
        run-parts --arg="$version" --arg="$kernel" /etc/kernel/postinst.d
        linux-update-symlinks install "$version" "$kernel"
    fi
done
