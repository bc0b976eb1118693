"""What the oldest versions that pyproject.toml allows do not do."""

from importlib.metadata import version

import pytest
from packaging.version import Version


def since(package: str, first: str, otherwise: str) -> pytest.MarkDecorator:
    """Skips a test with versions before `first`; otherwise: what these do."""
    return pytest.mark.skipif(Version(version(package)) < Version(first), reason=f"older versions {otherwise}")
