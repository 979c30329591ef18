"""What an installation is: a clone on the path, or one package with the whole tree inside. Nothing needs a network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_imports import FILES, FLOORS

tomllib = pytest.importorskip("tomllib", reason="new in Python 3.11")
pytest.importorskip("setuptools", reason="setuptools builds wheels")
ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with what a wheel puts into site-packages."""
    folder = tmp_path_factory.mktemp("wheel") / "site"
    subprocess.run([sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(folder)], cwd=ROOT, check=True,
                   capture_output=True, timeout=600)
    return folder


def installed(site, *words, cwd):
    """Runs the command glm as the wheel's entry point does, away from the clone."""
    code = "import glm_toolkit; glm_toolkit.main()"
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run([sys.executable, "-c", code, *words], cwd=cwd, env=environment, capture_output=True,
                          text=True, timeout=600)


def test_a_wheel_puts_one_package_into_site_packages(site):
    """Names like kernels, tasks or evaluation belong to others there."""
    assert [path.name for path in site.iterdir()] == ["glm_toolkit"]


def test_the_whole_tree_comes_along(site):
    tree = site / "glm_toolkit" / "tree"
    folders = {*FLOORS, "scripts", "configs", "checkpoints"}
    missing = [name for name in FILES if name.split("/")[0] in folders and not (tree / name).is_file()]
    assert missing == []
    assert (tree / "requirements.txt").is_file()


def test_the_command_runs_from_anywhere(site, tmp_path):
    helped = installed(site, "--help", cwd=tmp_path)
    assert helped.returncode == 0 and "glm serve" in helped.stdout
    (tmp_path / "prompts.txt").write_text("My dear\n", encoding="utf-8")
    done = installed(site, "generate", "--fp32", "--device", "cpu", "--input-source", "prompts.txt", "--output-path",
                     "answers", "--max-gen-length", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "answers" / "results.jsonl").read_text(encoding="utf-8"))["prompt"] == "My dear"


@pytest.mark.slow
def test_tasks_are_scored_from_anywhere(site, tmp_path):
    done = installed(site, "evaluate", "--fp32", "--device", "cpu", "--limit", "2", "--output", "scores",
                     str(site / "glm_toolkit" / "tree" / "tasks" / "quickstart"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "scores" / "results.json").is_file()


def test_in_a_clone_it_is_the_clone(tmp_path):
    code = "import glm_toolkit, generation; print(glm_toolkit.TREE)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, timeout=600)
    assert done.stdout.strip() == str(ROOT), done.stderr


def test_names_of_commands():
    from commands.main import COMMANDS

    for target, _, what in COMMANDS.values():
        module, _, function = target.partition(":")
        path = ROOT / module.replace(".", "/")
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        assert f"def {function}(" in file.read_text(encoding="utf-8") and what


def test_dependencies_are_those_of_the_requirements():
    assert PROJECT["project"]["dynamic"] == ["dependencies"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["dependencies"] == {"file": ["requirements.txt"]}
    assert PROJECT["project"]["scripts"] == {"glm": "glm_toolkit:main"}
