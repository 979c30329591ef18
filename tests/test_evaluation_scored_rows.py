"""Files of `python -m tuning evaluate` and `score-text` against each other."""

import json

import pytest

from commands.evaluate import main
from evaluation.compare import compare
from runtime.errors import UserError


def cloze(predictions, labels, metrics=(), scores=2, **more):
    rows = [{"guid": f"dev-{number}", "scores": [0.0] * scores, "prediction": predicted, "label": label}
            for number, (predicted, label) in enumerate(zip(predictions, labels, strict=True))]
    return {"task": "cb", "split": "dev", "rows": rows, "skipped": [], "metrics": dict(metrics), "losses": {}} | more


def write(folder, name, value):
    path = folder / f"{name}.json"
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def compared(tmp_path, one, other, **more):
    found = compare(write(tmp_path, "a", one), write(tmp_path, "b", other), **more)
    (task,) = found.record["tasks"].values()
    return task["groups"]["all"]


def test_accuracy_by_pairs_of_rows(tmp_path):
    labels = [0, 1] * 10
    before, after = [0] * 20, [0, 1] * 9 + [1, 1]  # 10 are gained, one is lost
    found = compared(tmp_path, cloze(before, labels, {"accuracy": 50.0}), cloze(after, labels, {"accuracy": 95.0}))
    values = found["accuracy"]
    assert (values["a"], values["b"], values["difference"], values["n"]) == (50.0, 95.0, 45.0, 20)
    assert (values["only_a"], values["only_b"]) == (1, 10)
    assert values["interval"][0] > 0
    assert list(found) == ["accuracy"]


def test_f1_is_that_of_the_file(tmp_path):
    """Class 0: predicted twice, right twice, both once: F1 1/2; class 1 the same with three: 2/3; class 2 nowhere."""
    value = cloze([0, 0, 1, 1, 1], [0, 1, 0, 1, 1], {"accuracy": 60.0, "f1-macro": (1 / 2 + 2 / 3) / 2, "f1": 2 / 3},
                  scores=3)
    found = compared(tmp_path, value, value)
    assert {name: values["a"] for name, values in found.items()} == pytest.approx(
        {"accuracy": 60.0, "f1-macro": 7 / 12, "f1": 2 / 3})
    assert all(values["difference"] == 0 for values in found.values())


def test_figures_that_rows_bring_are_averaged(tmp_path):
    def texts(*values):
        return {"rows": [{"rouge-1": value, "bleu-4": 2 * value} for value in values], "mean": {}}

    found = compared(tmp_path, texts(0.1, 0.2, 0.3), texts(0.2, 0.4, 0.9))
    assert found["rouge-1"]["difference"] == pytest.approx(0.3)
    assert found["bleu-4"]["a"] == pytest.approx(0.4)


def test_windows_of_text_have_losses(tmp_path):
    def windows(*values):
        return {"task": "wikitext", "split": "dev", "metrics": {"loss": 1.0},
                "rows": [{"index": number, "value": value} for number, value in enumerate(values)]}

    values = compared(tmp_path, windows(10.0, 20.0), windows(8.0, 14.0))["loss a window"]
    assert values["difference"] == -4 and not values["higher_is_better"]


def test_rows_that_only_one_file_has_are_named(tmp_path):
    one, other = cloze([0, 1, 1], [0, 1, 0]), cloze([0, 1], [0, 1])
    with pytest.raises(UserError, match="3 items against 2"):
        compared(tmp_path, one, other)
    assert compared(tmp_path, one, other, common=True)["accuracy"]["n"] == 2


@pytest.mark.parametrize("value, message", [
    ({"rows": []}, "no rows"),
    ({"rows": [{"guid": "0", "error": "too long"}]}, "none of its rows"),
    ({"rows": [{"guid": "0", "prediction": 1, "label": None}]}, "no figures"),
    (["rows"], "no rows"),
    (cloze([1, 1], [1, 1], {"accuracy": 50.0}), "do not belong together"),
    (cloze([1, 1], [1, 0]), "not of the same data"),
])
def test_what_cannot_be_compared_is_one_line(tmp_path, capsys, value, message):
    good = write(tmp_path, "good", cloze([1, 1], [1, 1], {"accuracy": 100.0}))
    assert main(["compare", str(write(tmp_path, "other", value)), str(good)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
