"""Anemos redeploys whole Linux servers from code."""
