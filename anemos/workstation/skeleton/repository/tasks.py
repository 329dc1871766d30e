"""The tasks of this repository: those of Anemos, and yours, each with ns.add_task(...)."""

from anemos.workstation.cli.tasks import ns

__all__ = ["ns"]
