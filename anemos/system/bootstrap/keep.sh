# shellcheck shell=sh
# Packages in $2 of the new system $1 that are installed: they stay in $3. What nobody needs any more is not kept. A
# mirror on a disk leaves none.
set -e
mkdir -p "$1/$3"
cd "$1/$2"
format="\${Package}_\${Version}_\${Architecture}.deb\n"
dpkg-query --admindir="$1/var/lib/dpkg" --show --showformat="$format" | sed 's/:/%3a/g' |
    while read -r each; do [ ! -e "$each" ] || mv "$each" "$1/$3"; done
cd "$1/$3"
set -- *.deb
[ ! -e "$1" ] || sha256sum -- "$@" >SHA256SUMS
