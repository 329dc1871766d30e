"""The values of templates: the same names for a deployment, an image and a stock system."""

from collections.abc import Mapping
from pathlib import Path


def values(name: str, deployment: str, key: Path | None, own: Mapping[str, str]) -> dict[str, str]:
    """What the templates of hosts/NAME may use. OWN: its secrets without a path.

    KEY: what Anemos logs in with, a private SSH key. Its public half, which lies beside it, is the
    value `operator_key`. No secret has the name of one of these (template.PUBLIC).
    """
    found = {**own, "host": name, "deployment": deployment}
    public = key.with_name(f"{key.name}.pub") if key else None
    if public and public.is_file():
        found["operator_key"] = public.read_text().strip()
    return found
