"""What makes file systems: argv for block devices, or for files of their size."""

from pathlib import Path

# Quiet, over all that is there, with a UUID given: mkfs.ext4(8), mkfs.xfs(8), mkfs.btrfs(8),
# mkfs.vfat(8), mkswap(8).
MAKERS = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-U"),
    "xfs": ("mkfs.xfs", "-q", "-f", "-m"),
    "btrfs": ("mkfs.btrfs", "-q", "-f", "-U"),
    "vfat": ("mkfs.vfat", "-i"),
    "swap": ("mkswap", "-q", "-U"),
}
# Debian's packages of them, which also check.
PACKAGES = {"ext4": "e2fsprogs", "xfs": "xfsprogs", "btrfs": "btrfs-progs", "vfat": "dosfstools"}


def make(fs: str, uuid: str, node: Path) -> list[str | Path]:
    """argv that makes FS on NODE; UUID as blkid(8) shows it (layout.fs_uuid)."""
    word = {"xfs": f"uuid={uuid}", "vfat": uuid.replace("-", "")}.get(fs, uuid)
    return [*MAKERS[fs], word, node]
