"""The doctor on Python and packages: the wrong apex, icetk's protobuf, requirements; some of them really installed."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from doctor import packages
from doctor.packages import Packages

ROOT = Path(__file__).resolve().parent.parent
GOOD = Packages("3.11.4", "/env/bin/python", True, versions={"torch": "2.13.0", "protobuf": "7.36.2"})
ICETK = {"version": "0.0.7", "protobuf": "<3.19"}


def found(**changes):
    return [(one.code, one.level, str(one)) for one in packages.check(dataclasses.replace(GOOD, **changes), "here")]


def install(folder, name, version, metadata="", files=()):
    """What pip leaves of a package: its metadata, and modules."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{metadata}")
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("")


def test_a_good_environment_has_no_finding():
    assert found() == []


def test_an_unsupported_python_is_named():
    ((code, level, line),) = found(python="3.9.18", is_supported=False)
    assert (code, level) == ("python", "error")
    assert "Python 3.9.18 (/env/bin/python) is not supported, 3.10 to 3.12 are" in line
    assert "PYTHON=/path/to/python3.11 bash scripts/doctor.sh" in line


def test_every_requirement_that_is_not_met_has_its_line():
    lines = found(lacking=("torch==2.13.0 (found 2.5.1)", "deepspeed>=0.16,<0.20", "ruff>=0.9,<0.18"))
    assert [(code, level) for code, level, _ in lines] == [
        ("requirement", "error"), ("requirement", "error"), ("requirement", "warning")]  # ruff is for tests alone
    assert "torch==2.13.0 is needed, 2.5.1 is installed" in lines[0][2]
    assert "deepspeed>=0.16,<0.20 is not installed" in lines[1][2]
    assert f"mend it: /env/bin/python -m pip install -r {ROOT}/requirements.txt" in lines[0][2]


def test_nvidias_apex_is_fine_and_pypis_is_not():
    assert found(apex={"version": "0.1", "is_nvidias": True, "summary": ""}) == []
    ((code, level, line),) = found(apex={"version": "0.9.10.dev0", "is_nvidias": False, "summary": "Pyramid toolkit"})
    assert (code, level) == ("apex", "error")
    assert "apex 0.9.10.dev0 is not NVIDIA's but another program of that name from PyPI (Pyramid toolkit)" in line
    assert "mend it: /env/bin/python -m pip uninstall -y apex" in line


def test_icetks_old_protobuf():
    ((code, level, line),) = found(icetk=ICETK, lacking=("protobuf>=4.25,<8 (found 3.18.3)",))
    assert (code, level) == ("icetk", "error")  # and no second line for the requirement
    assert "icetk 0.0.7 demands protobuf<3.19" in line and "protobuf>=4.25,<8 (found 3.18.3)" in line
    assert "-m pip uninstall -y icetk && /env/bin/python -m pip install -r " in line
    ((code, level, line),) = found(icetk=ICETK)
    assert (code, level) == ("icetk-pin", "warning") and "the next pip install may take away the protobuf" in line
    assert found(icetk={"version": "1", "protobuf": ""}) == []


# Really there


@pytest.mark.parametrize("files, is_nvidias", [
    (["apex/__init__.py", "apex/lib/libapex.py"], False),
    (["apex/__init__.py", "apex/normalization/__init__.py"], True),
    ([], False),  # metadata alone
])
def test_apex_is_told_by_its_modules_without_importing_it(tmp_path, monkeypatch, files, is_nvidias):
    install(tmp_path, "apex", "0.9.10.dev0", "Summary: Pyramid toolkit\n", files)
    if files:
        (tmp_path / "apex" / "__init__.py").write_text("raise SystemError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert packages.look_for_apex() == {"version": "0.9.10.dev0", "is_nvidias": is_nvidias,
                                        "summary": "Pyramid toolkit"}


def test_no_apex_no_icetk(monkeypatch):
    monkeypatch.setattr(packages, "_version", lambda name: None)
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    assert packages.look_for_apex() is None and packages.look_for_icetk() is None


@pytest.mark.parametrize("line, bound", [("protobuf (<3.19)", "<3.19"), ("protobuf<3.19", "<3.19"),
                                         ("protobuf>=3,<4; python_version > '3'", ">=3,<4"), ("tqdm", "")])
def test_icetk_s_bound_is_read_from_its_metadata(tmp_path, monkeypatch, line, bound):
    install(tmp_path, "icetk", "0.0.7", f"Requires-Dist: tqdm\nRequires-Dist: {line}\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert packages.look_for_icetk() == {"version": "0.0.7", "protobuf": bound}


def test_they_are_found_in_the_environment_that_the_doctor_runs_in(tmp_path):
    """A fake apex, icetk, protobuf and torch stand before the real ones on the path of another process."""
    install(tmp_path, "apex", "0.9.10.dev0", files=["apex/__init__.py"])
    install(tmp_path, "icetk", "0.0.7", "Requires-Dist: protobuf (<3.19)\n")
    install(tmp_path, "protobuf", "3.18.3")
    install(tmp_path, "torch", "2.5.1")
    program = ("import json; from doctor import packages\n"
               "found = packages.check(packages.look(), 'here')\n"
               "import sys; sys.stdout.write(json.dumps([[one.code, one.what] for one in found]))")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"})
    lines = json.loads(done.stdout)
    assert [code for code, _ in lines] == ["requirement", "apex", "icetk"], done.stderr
    assert lines[0][1] == "torch==2.13.0 is needed, 2.5.1 is installed"
