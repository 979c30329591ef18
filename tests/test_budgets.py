"""How large each package may become. A change that passes its budget says so here, in the same commit, and why."""

from pathlib import Path

import pytest

from tests.test_imports import ENTRIES, HOUSE, ROOT

# package: (files, lines) as they were when this was written; each may grow by a tenth before somebody has to look
SIZES = {
    "runtime": (15, 2246), "kernels": (12, 1485), "quantization": (3, 82), "glm": (46, 5543), "planning": (10, 1307),
    "generation": (17, 2617), "evaluation": (27, 4896), "tasks": (5, 271), "doctor": (11, 1679), "serving": (18, 2158),
    "tools": (48, 7050), "commands": (11, 1479),
}
ROOM = 1.1


@pytest.mark.parametrize("package", SIZES)
def test_a_package_stays_within_its_budget(package):
    names = [name for name in HOUSE if name.split("/")[0] == package]
    lines = sum(len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in names)
    files, most = (size * ROOM for size in SIZES[package])
    assert len(names) <= files and lines <= most, f"{package}: {len(names)} files, {lines} lines"


def test_every_package_has_one():
    assert {name.split("/")[0] for name in HOUSE} == set(SIZES)


def test_files_are_worth_opening():
    """None under 60 lines but entries, what gathers a package's names, and these."""
    allowed = {
        "commands/main.py": "the table of commands", "generation/batching.py": "shared by files and evaluation",
        "glm/prompt_form.py": "no torch, read by families and generation", "glm/tokenizers/glm.py": "one vocabulary",
        "glm/tokenizers/megatron.py": "one vocabulary", "kernels/cuda/build.py": "compiling", "kernels/packing.py":
        "the layout of INT4", "serving/errors.py": "the form of errors", "serving/page.py": "the page's files",
        "serving/routes.py": "the table of routes", "serving/scoring.py": "the only scoring", "serving/streams.py":
        "events", "tasks/lambada/task.py": "a task's own code", "tasks/language_modeling/pile.py": "a task's own code",
        "tasks/mmlu/task.py": "a task's own code", "tools/convert_tp.py": "an entry", "tools/verify_checkpoint.py":
        "an entry"}
    small = {name for name in HOUSE if name not in ENTRIES and Path(name).name != "__init__.py"
             and len((ROOT / name).read_text(encoding="utf-8").splitlines()) < 60}
    assert small <= set(allowed)
