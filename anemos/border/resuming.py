"""What the operator asks of an initramfs that waits after a failure: the file stage.RESUME."""

from dataclasses import dataclass

PARTITIONS, PACKAGES, DEFINITION, BOOT_LOADER = STEPS = (
    "partitions",
    "package-layer",
    "definition",
    "boot-loader",
)


@dataclass(frozen=True)
class Request:
    """ "" for what is as it was."""

    payload: str = ""  # SHA-256 of a corrected one
    layer: str = ""  # SHA-256 of another package layer
    step: str = ""  # of STEPS, to begin with
