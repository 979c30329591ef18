"""report.html of a training, and the lines that tell of its rows: nothing is silent."""

import json

import pytest

from runtime.errors import UserError
from tests.test_evaluation_report import Page
from tuning.data.sample import Kind, Row, Sample, Unbuildable
from tuning.notes import notes_on
from tuning.options import DataOptions, Settings
from tuning.report import report, write_report, write_rows

ATTACK = "<script>alert('x')</script>"
TASK = 'text_a: "{text}"\nlabels: [a, b]\nverbalizers: {a: one, b: a longer one}\npatterns:\n- a: ["{text_a}", _]\n'


def validation(right):
    """Rows of which so many are right."""
    rows = [{"guid": f"dev-{number}", "scores": [0.0, float(number)], "prediction": 1, "label": int(number < right)}
            for number in range(20)]
    return {"task": "rte", "split": "dev", "rows": rows, "metrics": {"accuracy": 5.0 * right}}


@pytest.fixture
def folder(tmp_path):
    """Three epochs of forty steps, the second the best."""
    lines = []
    for step in range(120):
        lines.append({"step": step, "loss": 2.0 - step / 100, "learning_rate": 1e-4, "gradient_norm": 1.0, "rows": [0]})
        if step % 40 == 39:
            epoch, right = step // 40, (10, 15, 12)[step // 40]
            write_rows(tmp_path, epoch, validation(right))
            lines[-1] |= {"epoch": epoch, "validation": {"accuracy": 5.0 * right}, "is_best": epoch < 2}
    lines[7] |= {"skipped": True, "loss": None, "gradient_norm": None}
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "run.json").write_text(json.dumps({"settings": {"task": ATTACK, "lr": 1e-4},
                                                   "contents": {"the rows": "0123456789abcdef"}}))
    (tmp_path / "parameters.json").write_text(json.dumps({"decayed": ["a", "b"], "not_decayed": []}))
    return tmp_path


def test_a_page_with_curves_validations_and_rows(folder):
    samples = [Sample(f"dev-{number}", Kind.CHOICES, (), text=f"text {number} {ATTACK}",
                      meta={"choices": ("no", "yes")}) for number in range(20)]
    source = write_report(folder, samples, ["3 of 9 rows are too long"]).read_text(encoding="utf-8")
    page = Page(source)
    assert page.count("svg") == 4 and page.count("script") == 0
    assert "75.00 in epoch 1" in page.text  # the best
    assert "3 of 9 rows are too long" in page.text
    assert "1 of 120 steps moved nothing, the first of them step 7" in page.text
    assert "The surest mistake" in page.text and "text 19 <script>" in page.text and "✗yes" in page.text
    assert "2 tensors" in page.text and "0123456789ab" in page.text


def test_validations_have_wilsons_intervals(folder):
    """Of 10, 15 and 12 of 20: computed from the rows, and shown for each epoch."""
    text = " ".join(Page(report(folder)).text.split())
    assert text.count("] kept") == 1
    for limits in ("[29.93, 70.07]", "[53.13, 88.81] kept", "[38.66, 78.12]"):
        assert limits in text, text[:3000]


def test_a_run_without_steps_is_refused(folder):
    (folder / "log.jsonl").write_text("")
    with pytest.raises(UserError, match="no step"):
        report(folder)


def sample(kind=Kind.CHOICES, cut=(0, 0), tokens=(1, 1), **meta):
    example = type("Read", (), {"text_a": "a text", "text_b": "another", "label": "a"})
    rows = tuple(Row((0,), (0,), (0,), 0, (0,), (1,) * count) for count in tokens)
    return Sample("dev-0", kind, rows, label=0, meta={"example": example, "cut": cut} | meta)


def noted(tmp_path, samples):
    (tmp_path / "mine.yaml").write_text(TASK, encoding="utf-8")
    from tuning.options import ClozeOptions

    return notes_on(Settings(data=DataOptions(task=str(tmp_path / "mine.yaml")), cloze=ClozeOptions(cloze_eval=True)),
                    samples)


def test_nothing_is_said_where_there_is_nothing_to_say(tmp_path):
    assert noted(tmp_path, [sample(), sample()]) == []


def test_what_happens_to_rows_is_counted_by_its_kind(tmp_path):
    lines = noted(tmp_path, [sample(cut=(3, 0), tokens=(2, 5)), sample(cut=(1, 2), tokens=(2, 5)), sample(),
                             Unbuildable("dev-3", "9 tokens too many")])
    assert lines == [
        "1 of 4 rows cannot be built, and are left out; the first is dev-3: 9 tokens too many",
        "2 of 4 rows lost the end of their first text: they are too long",
        "1 of 4 rows lost the end of their second text: they are too long",
        "6 tokens were cut in all, 3 of one row at most",
        "verbalizers have different numbers of tokens, ends included (one 2, a longer one 5), whose log-probabilities "
        "are added: --length-penalty 1 takes their mean"]
