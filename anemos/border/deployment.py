"""What a deployment says of itself in every place."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from anemos.disks import Device, Wanted


@dataclass(frozen=True)
class Agreed:
    """What `plan` has shown last, by content, not by name; empty where nobody has asked it."""

    layout: str = ""  # digest of layout and keep
    erase: dict[str, Device] = field(default_factory=dict)  # by the names in the layout
    slot: str = ""  # the one that may be filled
    by_server: bool = False  # its package layer is made there


@dataclass(frozen=True)
class Revision:
    """What a definition was packed from: a commit of its Git repository."""

    id: str = ""  # "" when nobody knows it
    changed: bool = False  # the tree had changes that no commit has

    def __str__(self) -> str:
        changes = " and changes" if self.changed else ""
        return f"{self.id[:12]}{changes}" if self.id else "unknown"


@dataclass(frozen=True)
class Deployment:
    deployment: str  # its id
    host: str
    keep: Sequence[Wanted]
    agreed: Agreed
    commit: Revision = field(default_factory=Revision, kw_only=True)
