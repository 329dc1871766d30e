"""Anemos redeploys whole Linux servers from code."""

__version__ = "0.1.0"
