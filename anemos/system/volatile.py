"""What changes on a server by itself: no drift. Its own state, not what somebody has decided."""

import re
from collections.abc import Callable, Iterable
from fnmatch import translate

# Globs below the root, for all below them, too. `*` stands for any number of directories.
VOLATILE = (
    "boot/grub/grubenv",
    "boot/loader/random-seed",
    "dev",
    "etc/.pwd.lock",
    "etc/.updated",
    "etc/adjtime",
    "etc/*-",  # passwd-, shadow-: what they were before
    "etc/ld.so.cache",
    "etc/lvm/archive",
    "etc/lvm/backup",
    "etc/machine-id",
    "etc/mtab",
    "etc/rc[0-6S].d",  # of sysvinit: systemctl keeps it in step with its own links
    "etc/resolv.conf",
    "etc/ssh/ssh_host_*_key*",
    "lost+found",
    "*/lost+found",
    "proc",
    "run",
    "sys",
    "tmp",
    "var/.updated",
    "var/backups",
    "var/cache",
    "var/lib",
    "var/log",
    "var/mail",
    "var/spool/anacron",
    "var/spool/exim4",
    "var/spool/postfix",
    "var/spool/rsyslog",
    "var/tmp",
    "*/.ash_history",
    "*/.bash_history",
    "*/.cache",
    "*/.lesshst",
    "*/.viminfo",
    "*/__pycache__",
)


def matcher(also: Iterable[str] = ()) -> Callable[[str], bool]:
    """Tell whether a path below a root is volatile. ALSO: more globs, or paths.

    A path is asked after the directories that lead to it: what is below them need not match.
    """
    globs = [*VOLATILE, *(each.strip("/") for each in also)]
    pattern = re.compile("|".join(map(translate, globs)))
    return lambda path: bool(pattern.match(path))
