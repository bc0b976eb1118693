"""The error of an invalid command line, which needs none of the libraries that parsing one does."""


class CommandLineError(SystemExit, ValueError):
    """An invalid command line: a ValueError for callers, and an exit with one line and no traceback for scripts."""
