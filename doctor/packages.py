"""Python and the packages: requirements.txt, and two packages that break others by their mere presence."""

from __future__ import annotations

import importlib.util
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from doctor.finding import Finding, error, pip, requirements, warning
from runtime.files import REPOSITORY

# without these everything runs but the tests
ONLY_FOR_TESTS = ("pytest", "hypothesis", "ruff")
UNSUPPORTED = 3  # exit code of check_requirements.py


@dataclass(frozen=True)
class Packages:
    """An interpreter and what is installed for it."""

    python: str  # its version
    executable: str
    is_supported: bool
    lacking: tuple[str, ...] = ()  # lines of scripts/check_requirements.py, "torch==2.13.0 (found 2.5.1)"
    versions: dict[str, str] | None = None  # installed ones of what requirements.txt names
    apex: dict | None = None  # its version, and whether it is NVIDIA's
    icetk: dict | None = None  # its version, and the bound that it sets on protobuf ("": none)


def look(root: Path = REPOSITORY) -> Packages:
    """Of this interpreter. Imports none of the packages."""
    file = root / "requirements.txt"
    done = subprocess.run([sys.executable, str(root / "scripts" / "check_requirements.py"), str(file)],
                          capture_output=True, text=True, errors="replace", timeout=60)
    names = re.findall(r"^[A-Za-z][\w.-]*", file.read_text(encoding="utf-8"), re.M)
    versions = {name: version for name in names if (version := _version(name))}
    return Packages(platform.python_version(), sys.executable, done.returncode != UNSUPPORTED,
                    tuple(filter(None, done.stdout.splitlines())), versions, look_for_apex(), look_for_icetk())


def look_for_apex() -> dict | None:
    """Which apex is installed. NVIDIA's has the modules apex.normalization and apex.amp; the apex on PyPI is a web
    framework's extension of the same name, with neither. Nothing of it is imported: that may fail by itself."""
    spec = importlib.util.find_spec("apex")
    version = _version("apex")
    if version is None and (spec is None or not spec.submodule_search_locations):
        return None
    folders = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    is_nvidias = any((folder / "normalization" / "__init__.py").is_file() for folder in folders)
    summary = (metadata.metadata("apex").get("Summary") or "") if version else ""
    return {"version": version or "", "is_nvidias": is_nvidias, "summary": summary}


def look_for_icetk() -> dict | None:
    version = _version("icetk")
    if version is None:
        return None
    bounds = [match[1].strip() for line in metadata.requires("icetk") or ()
              if (match := re.match(r"protobuf\s*\(?([^;)]*)", line))]
    return {"version": version, "protobuf": bounds[0] if bounds else ""}


def check(packages: Packages, where: str) -> Iterator[Finding]:
    python = packages.executable
    if not packages.is_supported:
        yield error("python", where, f"Python {packages.python} ({python}) is not supported, 3.10 to 3.12 are",
                    "PYTHON=/path/to/python3.11 bash scripts/doctor.sh")
    yield from check_requirements(packages, where)
    yield from check_apex(packages, where)
    yield from check_icetk(packages, where)


def check_requirements(packages: Packages, where: str) -> Iterator[Finding]:
    for line in packages.lacking:
        wanted, _, found = line.partition(" (found ")
        name = re.match(r"[\w.-]+", wanted)[0]
        if name == "protobuf" and packages.icetk:
            continue  # check_icetk says where the version comes from
        say = warning if name in ONLY_FOR_TESTS else error
        if found:
            yield say("requirement", where, f"{wanted} is needed, {found.rstrip(')')} is installed",
                      requirements(packages.executable))
        else:
            yield say("requirement", where, f"{wanted} is not installed", requirements(packages.executable))


def check_apex(packages: Packages, where: str) -> Iterator[Finding]:
    if packages.apex and not packages.apex["is_nvidias"]:
        called = f"apex {packages.apex['version']}".strip()
        summary = f" ({packages.apex['summary']})" if packages.apex["summary"] else ""
        yield error("apex", where, f"{called} is not NVIDIA's but another program of that name from PyPI{summary}; "
                    "SwissArmyTransformer imports whatever is called apex, and may fail by it; none is needed here",
                    pip("uninstall -y apex", packages.executable))


def check_icetk(packages: Packages, where: str) -> Iterator[Finding]:
    if not packages.icetk or not packages.icetk["protobuf"]:
        return
    icetk = f"icetk {packages.icetk['version']} demands protobuf{packages.icetk['protobuf']}"
    mend = f"{pip('uninstall -y icetk', packages.executable)} && {requirements(packages.executable)}"
    lacking = [line for line in packages.lacking if re.match(r"protobuf\b", line)]
    if lacking:
        yield error("icetk", where, f"{icetk}, which breaks the tokenizer here: it needs {lacking[0]}; only icetk's "
                    "vocabulary file is used, not the package", mend)
    else:
        yield warning("icetk-pin", where, f"{icetk}; the next pip install may take away the protobuf that the "
                      "tokenizer needs; only icetk's vocabulary file is used, not the package", mend)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
