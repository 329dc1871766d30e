"""The package layer: a root file system right after the bootstrap of `packages`.

A function of what `cache.inputs` lists and of the mirror's state. No secret in it.
"""

from anemos.image.bootstrap.cache import cached, key, layer_file
from anemos.image.bootstrap.targets import bootstrap, check, unpack

__all__ = ["bootstrap", "cached", "check", "key", "layer_file", "unpack"]
