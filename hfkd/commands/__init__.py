"""The command `hfkd`."""

from hfkd.commands.main import main

__all__ = ["main"]
