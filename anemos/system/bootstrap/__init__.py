"""The package layer: a root file system right after the bootstrap of `packages`.

A function of what `inputs` lists and of the mirror's state. No secret in it.
"""

from anemos.system.bootstrap.targets import bootstrap, check, inputs, key, unpack

__all__ = ["bootstrap", "check", "inputs", "key", "unpack"]
