"""Writes constraints.txt: of every package that requirements.txt brings, the newest version within the bounds, for each
supported Python. scripts/env.sh installs with it, so that a clone gets tomorrow what was tested today.

usage: python tools/lock.py

Resolving is left to uv, which answers for other Pythons than the one that runs it and reads metadata alone; pip would
need three interpreters, since deepspeed comes as source. uv is fetched into a folder that is deleted again, and takes
packages from PyPI whatever the settings here. Nothing is installed, and a clone never needs uv.
"""

import os
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.10", "3.11", "3.12")
# What torch's CUDA wheels bring differs from build to build, and torch names each exact version itself.
OF_TORCH = re.compile(r"(nvidia|cuda|triton)\b")
HEAD = """\
# Exact versions of all packages, direct and indirect, that scripts/env.sh installs. Written by tools/lock.py from
# requirements.txt; not to be edited. What torch's CUDA builds bring, torch pins itself.
"""


def resolved(uv, python, requirements):
    """{name: version} of everything that the file of requirements brings on Linux and the Python of that version."""
    command = [uv, "pip", "compile", "--quiet", "--no-config", "--no-header", "--no-annotate",
               "--python-version", python, "--python-platform", "linux", requirements]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("UV_")}
    lines = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    pins = dict(line.split("==") for line in lines)
    return {name: version for name, version in pins.items() if not OF_TORCH.match(name)}


def merged(pins):
    """Lines of the lock from {python: {name: version}}: one a package, with a marker a Python where they differ."""
    lines = []
    for name in sorted(set().union(*pins.values())):
        versions = {python: of_python[name] for python, of_python in pins.items() if name in of_python}
        if len(versions) == len(pins) and len(set(versions.values())) == 1:
            lines.append(f"{name}=={next(iter(versions.values()))}")
        else:
            lines += [f'{name}=={version} ; python_version == "{python}"' for python, version in versions.items()]
    return lines


def main():
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        programs = Path(folder) / "bin"
        subprocess.run([programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv"],
                       check=True, stdout=sys.stderr)
        pins = {python: resolved(programs / "uv", python, ROOT / "requirements.txt") for python in PYTHONS}
    (ROOT / "constraints.txt").write_text(HEAD + "\n".join(merged(pins)) + "\n", encoding="utf-8")
    print(f"constraints.txt: {', '.join(f'{len(of)} packages for Python {python}' for python, of in pins.items())}")


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(__doc__)
    try:
        main()
    except subprocess.CalledProcessError as failed:
        sys.exit(f"error: {Path(failed.cmd[0]).name}: exit code {failed.returncode}; constraints.txt is as it was")
