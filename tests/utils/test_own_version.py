"""Which hfkd ran: its version and its code, the same from a wheel and from a checkout."""

import shutil

import pytest

from hfkd.utils import own_version as module


@pytest.fixture
def version_of(monkeypatch):
    def of(package):
        monkeypatch.setattr(module, "PACKAGE", package)
        return module.own_version.__wrapped__()

    return of


def test_it_is_that_of_the_code_and_not_of_what_a_wheel_adds(tmp_path, version_of):
    checkout = version_of(module.PACKAGE)
    wheel = shutil.copytree(module.PACKAGE, tmp_path / "hfkd", ignore=shutil.ignore_patterns("__pycache__"))
    (wheel / "recipes").mkdir()
    (wheel / "recipes" / "train_teacher.py").write_text("pass")
    assert version_of(wheel) == checkout == module.own_version()
    with (wheel / "losses" / "items.py").open("a") as file:
        file.write("# another\n")
    assert version_of(wheel) != checkout
