"""pyproject.toml as "pip install ." reads it. Nothing is built here: that would need a network."""

from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.test_imports import FILES, INSTALLED

tomllib = pytest.importorskip("tomllib", reason="new in Python 3.11")
ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]


def test_every_package_of_the_library_is_installed_and_none_else():
    """Not tasks: a task file brings the code beside it."""
    folders = {name.removesuffix("/__init__.py") for name in FILES if name.endswith("/__init__.py")}
    library = {folder.replace("/", ".") for folder in folders if folder.split("/")[0] in INSTALLED}
    assert sorted(SETUPTOOLS["packages"]) == sorted(library)


def test_what_the_packages_read_beside_their_code_is_installed_too():
    patterns = SETUPTOOLS["package-data"]["*"]
    folders = {package.replace(".", "/") for package in SETUPTOOLS["packages"]}
    beside = [name for name in FILES if str(Path(name).parent) in folders and not name.endswith(".py")]
    assert beside
    assert [name for name in beside if not any(fnmatch(Path(name).name, pattern) for pattern in patterns)] == []


def test_dependencies_are_those_of_the_requirements():
    assert PROJECT["project"]["dynamic"] == ["dependencies"]
    assert SETUPTOOLS["dynamic"]["dependencies"] == {"file": ["requirements.txt"]}
