# shellcheck shell=sh
# After facts.sh: what the first definition of a Debian server is made from.
#
# Of a file the content is told only if everybody may read it, as it is nobody who reads it, and if no private key and
# no hash of a password is seen in it. Of all others there is the name alone.
export LC_ALL=C
release() { sed -n "s/^$1=//p" /etc/os-release | tr -d '"'; }

fact system "$(release ID)|$(release VERSION_ID)|$(release VERSION_CODENAME)|$(cat /proc/cmdline)"
[ "$(release ID)" = debian ] || exit 0

# shellcheck disable=SC2016 # dpkg-query's own variables
dpkg-query -W -f 'package=${Package}\t${db:Status-Status}\t${Essential}\t${Priority}\t${Pre-Depends}, ${Depends}\t${Recommends}\t${Provides}\n'
apt-mark showmanual | while read -r name; do fact manual "$name"; done
# Units, and which links in /etc/systemd/system are the packages' own: deb-systemd-helper(1p) remembers them.
find /usr/lib/systemd/system /etc/systemd/system -maxdepth 1 -name '*.*' -printf 'unit=%f\n'
find /var/lib/systemd/deb-systemd-helper-enabled -type f ! -name '*.dsh-also' -printf 'made=%P\n' 2>/dev/null
lsblk -dnro KNAME,PTTYPE 2>/dev/null | while read -r name type; do fact table "$name|$type"; done
while IFS=: read -r name _ uid gid gecos home shell; do
    fact account "$name|$uid|$gid|$home|$shell|$gecos"
done </etc/passwd
while IFS=: read -r name _ gid members; do fact team "$name|$gid|$members"; done </etc/group
while read -r node point _; do case $node in "#"*) ;; *) fact fstab "$point" ;; esac; done </etc/fstab
for top in /opt /srv /usr/local /var/www /var/spool/cron/crontabs; do
    found=$(find "$top" -xdev -type f 2>/dev/null | head -n 1000 | wc -l)
    [ "$found" = 0 ] || fact beside "$top|$found"
done

# Configuration files of packages that are not as their package has them.
changed() {
    # shellcheck disable=SC2016
    dpkg-query -W -f '${Conffiles}\n' | sed -n 's|^ \(/etc/.*\) \([0-9a-f]\{32\}\)\( obsolete\)\{0,1\}$|\2  \1|p' |
        md5sum --check --quiet 2>/dev/null | sed -n 's|^\(/.*\): FAILED.*|\1|p'
}
# What packages' scripts have made, and nobody has changed since: ucf(1), base-files, libc-bin.
untouched() {
    md5sum --check /var/lib/ucf/hashfile 2>/dev/null | sed -n 's/: OK$//p'
    for each in /usr/share/base-files/* /usr/share/libc-bin/*; do
        ! cmp -s "$each" "/etc/${each##*/}" || echo "/etc/${each##*/}"
    done
}
# All that lies in /etc and belongs to no package, but for links that update-alternatives(1) and the like make.
every() { find /etc -xdev \( -path /etc/alternatives -o -path '/etc/ssl/certs/*' -type l \) -prune -o ! -type d -print; }
strange() {
    { cat /var/lib/dpkg/info/*.list; untouched; echo; every; } |
        awk '$0 == "" { all = 1; next } !all { known[$0]; next } !($0 in known)'
}
# Keys, hashes as crypt(5) writes them, and passwords in URLs.
secret='BEGIN ([A-Z0-9]+ )*PRIVATE KEY|BEGIN OpenVPN Static key|PuTTY-User-Key|Private-key-format:|(Private|Preshared)Key *='
secret="$secret|[\$](1|2[abxy]?|5|6|7|g?y|apr1|argon2i?d?|sha1|scrypt)[\$]([^\$: ]*[\$])*[./A-Za-z0-9+]{20,}"
secret="$secret|[{](SSHA|SHA|SMD5|MD5|CRYPT)[0-9]*[}]|://[^/@: ]+:[^/@ ]+@|wpa-(psk|passphrase)|psk *="
# Runs the rest as the user $1, of the group $2 alone: what another user has put there leads root nowhere.
as() { uid=$1 gid=$2 && shift 2 && setpriv --reuid="$uid" --regid="$gid" --clear-groups "$@"; }

while IFS=: read -r name _ uid gid _ home _; do
    [ "$uid" = 0 ] || [ "$uid" -ge 1000 ] || continue
    for file in authorized_keys authorized_keys2; do
        as "$uid" "$gid" grep -aE '(ssh|ecdsa)-[^ ]+ +AAAA' "$home/.ssh/$file" 2>/dev/null | grep -avE -e "$secret" |
            while read -r line; do fact key "$name|$home/.ssh/$file|$line"; done
    done
done </etc/passwd

# shellcheck disable=SC2016 # the inner shell's own variables
{ changed; strange; } | sort -u | while IFS= read -r path; do
    case $path in *[!A-Za-z0-9._+@:,/~-]*)
        fact odd "$(printf %s "$path" | tr -c '[:print:]' '?')"
        continue ;;
    esac
    if [ -L "$path" ]; then
        fact link "$path|$(readlink "$path")"
    elif [ ! -e "$path" ]; then
        fact gone "$path"
    elif [ -f "$path" ]; then
        fact file "$path|$(stat -c '%a|%U|%G|%s' "$path")"
    fi
done | as 65534 65534 sh -c '
    while IFS= read -r line; do
        about=${line#file=} && path=${about%%|*} && kind=file
        [ "$about" != "$line" ] || { printf "%s\n" "$line"; continue; }
        case $path in
        /etc/apt/*) ;;
        *htpasswd* | *.key | *.keytab | *.jks | *.p12 | *.pfx) kind=hidden ;;
        esac
        [ "${about##*|}" -le 262144 ] || kind=large
        data=
        if [ "${about##*|}" = 0 ]; then
            kind=file
        elif [ ! -r "$path" ] || grep -aqE -e "$1" "$path"; then
            kind=hidden
        elif [ $kind = file ]; then
            data=$(base64 -w 0 "$path") || kind=hidden
        fi
        printf "%s\n" "$kind=$about|$data"
    done' sh "$secret"
fact seen end
