"""How large each package may become. A change that passes its budget says so here, in the same commit, and why."""

from pathlib import Path

import pytest

from tests.conftest import LONG
from tests.test_imports import ENTRIES, HOUSE, ROOT

# package: (files, lines) as they were when this was written; each may grow by a tenth before somebody has to look
SIZES = {
    "runtime": (15, 2246), "kernels": (24, 3240), "quantization": (3, 82), "glm": (50, 6600), "planning": (13, 1700),
    "generation": (19, 3050), "evaluation": (34, 5900), "tasks": (6, 391), "doctor": (11, 1674), "serving": (17, 2033),
    "tuning": (69, 9600), "tools": (52, 7595), "commands": (22, 2600),
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


def test_the_long_modules_of_tests_are_there():
    assert [name for name in LONG if not (ROOT / "tests" / f"test_{name}.py").is_file()] == []


def test_files_are_worth_opening():
    """None under 60 lines but entries, what gathers a package's names, and these."""
    allowed = {
        "commands/tuning/train.py", "tuning/train_options.py",
        "commands/tuning/common.py", "commands/tuning/evaluate.py", "commands/tuning/forget.py",
        "commands/tuning/inspect.py", "commands/tuning/original.py", "commands/tuning/merge.py",
        "tuning/evaluate_windows.py",
        "tuning/api.py", "tuning/chat_replies.py", "tuning/data/form.py", "tuning/plots.py", "tuning/tasks.py",
        "tuning/tokenizers.py",
        "evaluation/page.py",  # shared by both reports
        "commands/lm_eval.py",  # hands on to the harness
        "commands/main.py",  # the table of commands
        "generation/batching.py",  # shared by files and evaluation
        "glm/tokenizers/glm.py", "glm/tokenizers/megatron.py",  # a vocabulary each
        "glm/logits.py",  # shared by model and generation
        "kernels/cuda/build.py", "kernels/cuda/expansion.py", "kernels/cuda/norms.py", "kernels/cuda/stack.py",
            "kernels/packing.py",
        "planning/ranks.py",  # the trial's processes
        "runtime/pages.py",
        "serving/errors.py", "serving/page.py", "serving/routes.py", "serving/scoring.py", "serving/streams.py",
        "tasks/lambada/task.py", "tasks/language_modeling/pile.py", "tasks/mmlu/task.py",  # a task's own code
        "tools/convert_tp.py", "tools/verify_checkpoint.py",  # entries
    }
    small = {name for name in HOUSE if name not in ENTRIES and Path(name).name != "__init__.py"
             and len((ROOT / name).read_text(encoding="utf-8").splitlines()) < 60}
    assert small <= set(allowed)
