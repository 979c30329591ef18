"""The evaluation's standard output against the original's reports, line by line, for all of its tasks in one run."""

import re
from pathlib import Path

import pytest

import commands.evaluate as command
import glm.loading  # noqa: F401 (SAT's logger keeps the standard error that it finds: pytest's of one test must not be it)
from evaluation.task_file import load_task
from tests.tiny_tasks import MODEL

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden" / "evaluation"
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden evaluation data (third-party) is not here")
TASKS = sorted(path.stem for path in GOLDEN.glob("tasks/*.yaml"))
NUMBER = re.compile(r"(?<==) ?[\d.]+")


class Lines(list):
    """Stands for the terminal."""

    def __call__(self, line: str) -> None:
        self.append(line)

    table = __call__


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Standard output of a run over all golden tasks, cut into the reports of the tasks, by their names."""
    lines = Lines()
    tasks = tmp_path_factory.mktemp("golden") / "tasks"
    tasks.mkdir()
    for file in GOLDEN.glob("tasks/*.yaml"):  # the original takes 2048 tokens whatever the model
        text = file.read_text(encoding="utf-8")
        (tasks / file.name).write_text(text if "max_seq_length" in text else f"{text}\nmax_seq_length: 2048\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(GOLDEN)  # paths are printed as they were given
        patch.setattr(command, "Voice", lambda: lines)
        output = tmp_path_factory.mktemp("golden") / "out"
        assert command.main([*MODEL, "--data-path", "data", "--output", str(output), str(tasks)]) == 0
    parts = re.split(r"(?m)(?<=s\.)\n(?=\n)", "\n".join(lines))
    return {match[1]: part + "\n" for part in parts if (match := re.search(r"^Evaluating task (.*):$", part, re.M))}


@pytest.mark.parametrize("name", TASKS)
def test_the_report_is_the_original_s(reports, name):
    expected = (GOLDEN / "expected" / f"{name}.report.txt").read_text(encoding="utf-8")
    found = re.sub(r"in [\d.]+s\.", "in <time>s.", reports[load_task(GOLDEN / "tasks" / f"{name}.yaml", "data").name])
    if "PPL = " not in expected:
        assert found == expected
        return
    # a random model's perplexity is e to the power of a large number
    assert NUMBER.sub("", found) == NUMBER.sub("", expected)
    numbers, wanted = (list(map(float, NUMBER.findall(text))) for text in (found, expected))
    assert numbers == pytest.approx(wanted, rel=1e-3)
