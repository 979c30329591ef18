"""Two runs against each other: synthetic pairs whose answer is known, and the mistakes that a user can make."""

import json
import math

import pytest

from commands.evaluate import main
from evaluation.compare import compare
from runtime.errors import UserError
from tests.recorded_runs import MadeTask, choice_item, choice_items, text_item, window_item, write_run


def run(capsys, *words):
    code = main(["compare", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


def runs_of(tmp_path, kind, ones, others, **more):
    """Two runs of one task, given the items of each file in A and in B."""
    a = write_run(tmp_path / "a", [MadeTask("t", kind, ones, **more)])
    b = write_run(tmp_path / "b", [MadeTask("t", kind, others, **more)], checkpoint="other")
    return a, b


class TestFigures:
    def test_difference_flips_and_mcnemar_by_hand(self, tmp_path):
        before = [1] * 10 + [0] * 10
        after = [0] * 2 + [1] * 8 + [1] * 7 + [0] * 3  # 2 lost, 7 gained
        a, b = runs_of(tmp_path, "mul", {"dev.jsonl": choice_items(before)}, {"dev.jsonl": choice_items(after)})
        record = compare(a, b).record["tasks"]["t"]
        values = record["groups"]["all"]["Accuracy"]
        assert (values["a"], values["b"], values["difference"], values["n"]) == (50.0, 75.0, 25.0, 20)
        assert (values["only_a"], values["only_b"]) == (2, 7)
        p = 2 * sum(math.comb(9, k) for k in range(3)) / 2**9
        assert values["mcnemar"] == {"p": pytest.approx(p), "p_holm": pytest.approx(p)}
        assert values["interval"][0] < 25 < values["interval"][1]
        assert record["flips"]["dev.jsonl"] == {
            "metric": "Accuracy", "lost": [0, 1], "gained": [10, 11, 12, 13, 14, 15, 16]}

    def test_a_run_against_itself(self, tmp_path):
        a, _ = runs_of(tmp_path, "mul", {"dev.jsonl": choice_items([1, 0, 1])}, {"dev.jsonl": choice_items([1, 0, 1])})
        values = compare(a, a).record["tasks"]["t"]["groups"]["all"]["Accuracy"]
        assert values["difference"] == 0 and values["interval"] == [0, 0] and values["mcnemar"]["p"] == 1

    def test_holm_over_tasks(self, tmp_path):
        """One-sided flips 5, 8 and 2: p = 2/2^n, and times 2, 3 and 1."""
        def tasks(flips):
            return [MadeTask(f"t{count}", "mul", {"d": choice_items([int(flips)] * count + [1] * 10)})
                    for count in (5, 8, 2)]

        found = compare(write_run(tmp_path / "a", tasks(False)), write_run(tmp_path / "b", tasks(True))).record
        adjusted = {task: record["groups"]["all"]["Accuracy"]["mcnemar"]["p_holm"]
                    for task, record in found["tasks"].items()}
        assert found["tests"] == 3
        assert adjusted == pytest.approx({"t5": 2 * 2 / 2**5, "t8": 3 * 2 / 2**8, "t2": 0.5})

    def test_an_item_counts_once_however_many_prompts_there_are(self, tmp_path):
        """Item 0 is gained under both prompts, item 1 under one and lost under the other, item 2 lost once."""
        a, b = runs_of(tmp_path, "mul",
                       {"p1/d": choice_items([0, 0, 1, 1]), "p2/d": choice_items([0, 1, 1, 1])},
                       {"p1/d": choice_items([1, 1, 0, 1]), "p2/d": choice_items([1, 0, 1, 1])})
        record = compare(a, b).record["tasks"]["t"]
        values = record["groups"]["all"]["Accuracy"]
        assert (values["only_a"], values["only_b"]) == (1, 1)
        assert record["flips"]["p1/d"] == {"metric": "Accuracy", "lost": [2], "gained": [0, 1]}

    def test_files_of_different_sizes_are_different_items(self, tmp_path):
        a, b = runs_of(tmp_path, "mul", {"x": choice_items([0] * 3), "y": choice_items([0] * 2)},
                       {"x": choice_items([1] * 3), "y": choice_items([1] * 2)})
        values = compare(a, b).record["tasks"]["t"]["groups"]["all"]["Accuracy"]
        assert (values["only_a"], values["only_b"], values["n"]) == (0, 5, 5)

    def test_perplexity_has_an_interval_and_no_test(self, tmp_path):
        a, b = runs_of(tmp_path, "lm", {"d": [window_item(i, 300.0 + i) for i in range(20)]},
                       {"d": [window_item(i, 290.0 + i) for i in range(20)]})
        record = compare(a, b).record
        values = record["tasks"]["t"]["groups"]["all"]["PPL"]
        losses = sum(300.0 + i for i in range(20))
        assert values["difference"] == pytest.approx(math.exp((losses - 200) / 1600) - math.exp(losses / 1600))
        assert values["interval"][1] < 0 and "mcnemar" not in values and values["higher_is_better"] is False
        assert record["tests"] == 0 and record["tasks"]["t"]["flips"] == {}

    def test_text_answers_flip_too_and_are_tested_once(self, tmp_path):
        a, b = runs_of(tmp_path, "gen", {"d": [text_item(0, "a cat", ["cat"]), text_item(1, "x", ["dog"])]},
                       {"d": [text_item(0, "dog", ["cat"]), text_item(1, "x", ["dog"])]})
        record = compare(a, b).record
        assert record["tasks"]["t"]["flips"]["d"] == {"metric": "EM", "lost": [0], "gained": []}
        assert "mcnemar" not in record["tasks"]["t"]["groups"]["all"]["F1"] and record["tests"] == 1


class TestOutput:
    @pytest.fixture
    def pair(self, tmp_path):
        def tasks(right):
            return [
                MadeTask("cola", "mul", {"in.jsonl": choice_items([0] * 12 + [1] * 8 if not right else [1] * 20),
                                         "out.jsonl": choice_items([1, 0, 1])},
                         groups={"in": ["in.jsonl"], "out": ["out.jsonl"]}),
                MadeTask("cmrc", "gen",
                         {"d.jsonl": [text_item(i, "红" if right else "蓝\n", ["红"]) for i in range(3)]}),
                MadeTask("wiki", "lm", {"w": [window_item(i, 300.0 + i - 5 * right) for i in range(9)]})]

        return (write_run(tmp_path / "a", tasks(False)),
                write_run(tmp_path / "b", tasks(True), checkpoint="glm-large", dtype="bf16"))

    def test_the_table_says_it_all_in_100_columns(self, pair, capsys):
        code, out, err = run(capsys, *pair)
        assert code == 0 and err == ""
        assert max(map(len, out.split("\n"))) <= 100 and "\x1b" not in out
        line = next(line for line in out.split("\n") if line.startswith("  in "))
        assert line.split()[:6] == ["in", "Accuracy", "20", "40.00", "100.00", "+60.00"]
        assert "0:12" in line and line.rstrip().endswith("*")
        assert "settings dtype: fp32 | bf16" in out and "checkpoint path: checkpoints/glm-small | " in out
        assert any(line.split()[:2] == ["wiki", "PPL"] and line.rstrip().endswith("*") for line in out.split("\n"))

    def test_flips_are_listed_with_both_predictions(self, pair, capsys):
        _, out, _ = run(capsys, *pair, "--show-flips", 2)
        assert "cola: 12 flips\n  in.jsonl 0: 1 -> 0 (right: 0), gained\n  in.jsonl 1: 1 -> 0 (right" in out
        assert '  d.jsonl 0: "蓝\\n" -> "红" (right: "红"), gained\n' in out
        assert "in.jsonl 2:" not in out

    def test_json_has_everything(self, pair, capsys, tmp_path):
        code, _, _ = run(capsys, *pair, "--json", tmp_path / "found.json")
        found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
        assert code == 0 and found["schema"] == 1 and set(found["tasks"]) == {"cola", "cmrc", "wiki"}
        assert found["tasks"]["cola"]["flips"]["in.jsonl"]["gained"] == list(range(12))
        assert {"what": "settings dtype", "a": "fp32", "b": "bf16"} in found["differs"]


class TestMistakes:
    def refused(self, capsys, *words):
        code, out, err = run(capsys, *words)
        assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1
        return err

    def test_a_folder_that_is_not_there(self, capsys, tmp_path):
        assert "nowhere: no such folder" in self.refused(capsys, tmp_path / "nowhere", tmp_path)

    def test_a_folder_without_results(self, capsys, tmp_path):
        assert "has no results.json" in self.refused(capsys, tmp_path, tmp_path)

    @pytest.mark.parametrize(("text", "message"), [
        ("{", "not valid JSON"), ("[]", "no `tasks`"), ('{"schema": 9, "tasks": {}}', "has schema 9")])
    def test_results_that_are_none(self, capsys, tmp_path, text, message):
        (tmp_path / "results.json").write_text(text)
        assert message in self.refused(capsys, tmp_path, tmp_path)

    def test_other_data_are_named_and_common_leaves_them_out(self, capsys, tmp_path):
        same, rest = (MadeTask(name, "mul", {"d": choice_items([1, 0])}) for name in ("same", "t"))
        a, b = write_run(tmp_path / "a", [same, rest]), write_run(tmp_path / "b", [same, rest])
        results = json.loads((b / "results.json").read_text())
        results["tasks"]["t"]["files"]["d"]["sha256"] = "0" * 64
        (b / "results.json").write_text(json.dumps(results))
        err = self.refused(capsys, a, b)
        assert "task t: d: the data differ" in err and "--common compares what is the same" in err
        code, out, _ = run(capsys, a, b, "--common")
        assert code == 0 and "same" in out and "not compared: task t: d: the data differ" in out

    def test_other_task_files_are_named(self, capsys, tmp_path):
        items = {"d": choice_items([1, 0])}
        a = write_run(tmp_path / "a", [MadeTask("t", "mul", items, yaml="one.yaml")])
        b = write_run(tmp_path / "b", [MadeTask("t", "mul", items, yaml="two.yaml")])
        assert "task t: the task files differ (one.yaml, two.yaml)" in self.refused(capsys, a, b)
        assert "no data file in common" in self.refused(capsys, a, b, "--common")

    def test_a_task_or_file_in_one_run_only(self, capsys, tmp_path):
        items = choice_items([1, 0])
        more = MadeTask("u", "mul", {"d": items})
        a = write_run(tmp_path / "a", [MadeTask("t", "mul", {"d": items, "e": items}), more])
        b = write_run(tmp_path / "b", [MadeTask("t", "mul", {"d": items})], absent=["u"])
        err = self.refused(capsys, a, b)
        assert f"task t: e: only in {a}" in err and f"task u: only in {a}" in err
        assert run(capsys, a, b, "--common")[0] == 0

    def test_a_limited_run_against_a_whole_one(self, capsys, tmp_path):
        a, b = runs_of(tmp_path, "mul", {"d": choice_items([1, 0, 1, 1])}, {"d": choice_items([1, 1])})
        assert "task t: d: 4 items against 2" in self.refused(capsys, a, b)
        _, out, _ = run(capsys, a, b, "--common")
        line = next(line for line in out.split("\n") if line.startswith("t "))
        assert line.split()[2:5] == ["2", "50.00", "100.00"]

    def test_samples_that_are_gone_or_broken(self, capsys, tmp_path):
        a, b = runs_of(tmp_path, "mul", {"d": choice_items([1, 0])}, {"d": choice_items([1, 1])})
        path = b / "samples" / "t" / "d.jsonl"
        path.write_text(path.read_text()[:-20])
        assert "d.jsonl:2: not valid JSON" in self.refused(capsys, a, b)
        path.write_text("{}\n")
        assert "d.jsonl:1: not an item" in self.refused(capsys, a, b)
        path.write_text("")
        assert "holds no item" in self.refused(capsys, a, b)
        path.unlink()
        assert "d.jsonl: No such file" in self.refused(capsys, a, b)

    def test_samples_of_another_run(self, capsys, tmp_path):
        a, b = runs_of(tmp_path, "mul", {"d": choice_items([1, 0])}, {"d": choice_items([1, 1])})
        path = b / "samples" / "t" / "d.jsonl"
        path.write_text(json.dumps(choice_item(0, 1)) + "\n" + json.dumps(choice_item(1, 1)) + "\n")
        assert "the samples give Accuracy 0, results.json has 100" in self.refused(capsys, a, b)

    def test_flags_that_make_no_sense(self, capsys, tmp_path):
        a, b = runs_of(tmp_path, "mul", {"d": choice_items([1])}, {"d": choice_items([1])})
        assert "--show-flips -1" in self.refused(capsys, a, b, "--show-flips", -1)
        assert "there is no folder" in self.refused(capsys, a, b, "--json", tmp_path / "x" / "y.json")


def test_text_with_unusual_line_ends_is_one_item(tmp_path):
    items = {"d": [text_item(0, "a\u2028b\x85c\x0cd", ["x"]), text_item(1, "y", ["y"])]}
    a, b = runs_of(tmp_path, "gen", items, items)
    assert compare(a, b).record["tasks"]["t"]["groups"]["all"]["EM"]["n"] == 2


def test_code_that_a_run_brings_along_is_imported_when_asked_for_only(tmp_path, capsys):
    """Whoever sends a results.json must not be able to run what they like."""
    canary = tmp_path / "ran"
    a, b = runs_of(tmp_path, "mul", {"test.jsonl": choice_items([1, 0])}, {"test.jsonl": choice_items([1, 1])})
    (a / "measures.py").write_text(f"open({str(canary)!r}, 'w')\ndef margin(item):\n    return 1.0\n", encoding="utf-8")
    for folder in (a, b):
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        results["tasks"]["t"]["file"] = str(a / "t.yaml")
        results["tasks"]["t"]["config"]["metrics"].append("measures.margin")
        (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    with pytest.raises(UserError, match=r"task t is measured by code of its own \(measures.margin, .*t.yaml\); "
                                        "--own-code imports it, if you trust where this run comes from"):
        compare(a, b)
    assert not canary.exists()
    with pytest.raises(UserError, match="results.json has no figure"):  # they never had this metric
        compare(a, b, own_code=True)
    assert canary.exists()


HOSTILE = [  # what a results.json may name so that something of its sender's choice is called with an item
    {"metrics": ["commands.evaluate.main"]},
    {"metrics": ["evaluation.metrics.exact_match"]},
    {"module": "evaluation.tasks.MultiChoiceTask"},
    {"module": "tasks.lambada.task.UserError"},
    {"module": "tasks.evil.T"},
    {"module": "tasks.mmlu.task.MMLU", "metrics": ["measures.margin"]},
]


@pytest.mark.parametrize("config", HOSTILE)
def test_nothing_is_called_that_only_looks_like_ours(tmp_path, config, monkeypatch):
    """A prefix of a dotted name is no boundary: below it lies all that was ever imported there, main programs too."""
    a, b = runs_of(tmp_path, "mul", {"d": choice_items([1])}, {"d": choice_items([0])})
    for folder in (a, b):
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        results["tasks"]["t"]["config"] |= config
        (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    called = []
    monkeypatch.setattr("evaluation.names.import_dotted", lambda *names: called.append(names))
    monkeypatch.setattr("evaluation.tasks.import_dotted", lambda *names: called.append(names))
    with pytest.raises(UserError, match="is measured by code of its own"):
        compare(a, b)
    assert not called


def test_a_metric_that_is_none_is_one_of_the_run_not_of_a_task_file(tmp_path):
    a, b = runs_of(tmp_path, "mul", {"d": choice_items([1])}, {"d": choice_items([0])})
    for folder in (a, b):
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        results["tasks"]["t"]["config"]["metrics"] = ["Acuracy"]
        (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    with pytest.raises(UserError, match=f"^{a}: task t: unknown metric 'Acuracy', did you mean 'Accuracy'"):
        compare(a, b)


OURS = {"module": "tasks.ethnic.stereoset.StereoSet", "path": "data"}


def test_the_classes_of_our_own_tasks_measure_without_a_flag(tmp_path):
    a, b = runs_of(tmp_path, "mul", {"d": [choice_item(0, 1, bias_type="age")]},
                   {"d": [choice_item(0, 1, bias_type="age")]}, metrics=["Accuracy"], **OURS)
    assert compare(a, b, common=True).record["tasks"]["t"]["groups"]["all"]["Accuracy (age)"]["n"] == 1


@pytest.mark.parametrize("kind", [["age"], {"age": 1}, None, 3])
def test_a_kind_that_is_no_name_is_one_line(tmp_path, kind):
    items = [choice_item(0, 1, bias_type="age"), choice_item(1, 1, bias_type=kind)]
    a, b = runs_of(tmp_path, "mul", {"d": items}, {"d": items}, metrics=["Accuracy"], **OURS)
    with pytest.raises(UserError, match="item 1: bias_type must be text"):
        compare(a, b)


def test_what_runs_hold_cannot_steer_the_terminal(tmp_path, capsys):
    name = "t\x1b]0;x\x07"
    one, other = ([choice_item(index, answer) for index in range(2)] for answer in (0, 1))
    folders = [write_run(tmp_path / folder, [MadeTask(name, "mul", {"d\x9b.jsonl": items})])
               for folder, items in (("a\nb", one), ("b", other))]
    code, out, _ = run(capsys, *folders, "--show-flips", "9")
    assert code == 0 and not set(map(ord, out)) & (set(range(32)) - {10} | set(range(127, 160)))
    assert r"t\x1b]0;x\x07" in out and r"d\x9b.jsonl" in out and r"a\nb" in out
