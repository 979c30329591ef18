"""constraints.txt, the lock that scripts/env.sh installs with, beside the bounds of requirements.txt."""

import re
from pathlib import Path

import pytest

from scripts.check_requirements import OPERATORS, parse, release
from tools import lock

ROOT = Path(__file__).resolve().parent.parent
PIN = re.compile(r'([a-z0-9-]+)==([0-9][0-9a-z.]*)(?: ; python_version == "(3\.\d+)")?')


def faults(constraints, requirements):
    """What keeps the text of a lock from pinning, for each Python, all packages once and requirements within bounds."""
    pins = {}
    for line in filter(None, (line.partition("#")[0].strip() for line in constraints.splitlines())):
        if not (pin := PIN.fullmatch(line)):
            yield f"{line}: not an exact version"
            continue
        name, version, only = pin.groups()
        for python in [only] if only else lock.PYTHONS:
            if (python, name) in pins:
                yield f"{name}: twice for Python {python}"
            pins[python, name] = version
    for name, bounds in filter(None, map(parse, requirements.splitlines())):
        for python in lock.PYTHONS:
            version = pins.get((python, name.lower()))
            if version is None:
                yield f"{name}: not there for Python {python}"
            elif not all(OPERATORS[sign](release(version), release(limit)) for sign, limit in bounds):
                yield f"{name}: {version} is out of bounds for Python {python}"


def test_the_lock_holds_an_exact_version_within_the_bounds_for_every_requirement():
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("constraints.txt", "requirements.txt")]
    assert list(faults(*texts)) == []


def test_the_lock_leaves_the_packages_of_a_build_of_torch_to_torch():
    names = [line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()]
    assert "torch" in names and not list(filter(lock.OF_TORCH.match, names))


@pytest.mark.parametrize("constraints, fault", [
    ("other==1", "Some-Name: not there for Python 3.10"),
    ("some-name==1.4", "Some-Name: 1.4 is out of bounds for Python 3.10"),
    ("some-name==2.0", "Some-Name: 2.0 is out of bounds for Python 3.10"),
    ("some-name>=1.5", "some-name>=1.5: not an exact version"),
    ("some-name==1.5+cpu", "some-name==1.5+cpu: not an exact version"),
    ("some-name @ file:///wheels/some.whl", "some-name @ file:///wheels/some.whl: not an exact version"),
    ("some-name==1.5\nsome-name==1.6 ; python_version == \"3.11\"", "some-name: twice for Python 3.11"),
    ("some-name==1.5 ; python_version == \"3.10\"", "Some-Name: not there for Python 3.11"),
])  # fmt: skip
def test_a_bad_lock_is_noticed(constraints, fault):
    assert next(faults(constraints, "# why\nSome-Name>=1.5,<2\n")) == fault


def test_pythons_with_one_version_share_a_line():
    pins = {"3.10": {"b": "1", "a": "1.0", "old": "3"}, "3.11": {"b": "2", "a": "1.0"}}
    lines = ['a==1.0', 'b==1 ; python_version == "3.10"', 'b==2 ; python_version == "3.11"',
             'old==3 ; python_version == "3.10"']
    assert lock.merged(pins) == lines


def test_the_lock_is_made_for_the_pythons_that_are_supported():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    oldest, next_one = lock.PYTHONS[0], f"3.{int(lock.PYTHONS[-1].split('.')[1]) + 1}"
    assert f'requires-python = ">={oldest},<{next_one}"' in project
