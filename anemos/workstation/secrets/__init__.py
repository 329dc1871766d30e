"""Secrets: encrypted where they are kept, in clear in memory only."""
