"""SSH key pairs, by ssh-keygen(1)."""

from pathlib import Path

from anemos.run import run


def make(file: Path, comment: str) -> str:
    """Make FILE and its public half FILE.pub, instead of what an interrupted call left; the half's
    text."""
    file.unlink(missing_ok=True)
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", file])
    return file.with_name(f"{file.name}.pub").read_text().strip()


def public(private: bytes) -> str:
    """The public half of a key, "TYPE BASE64 COMMENT". Raises CommandFailed for what OpenSSH cannot
    use without asking."""
    return run(["ssh-keygen", "-y", "-P", "", "-f", "/dev/stdin"], data=private).strip()
