"""What runs leave behind, damaged or made up: it is refused or read, and no name in it leads out of its folder."""

import contextlib
import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import strategies as st

from evaluation.compare import compare
from evaluation.compare_table import comparison_table, flip_lines
from evaluation.output import sample_names, write_json
from evaluation.recorded import RecordedRun
from evaluation.report import report, write_report
from evaluation.run import Keeper, Settings
from evaluation.store import Journal
from evaluation.table import closing_table
from generation.blanks import Beam, Result
from generation.prompt_file import read_prompts
from generation.records import Results
from runtime.errors import UserError
from runtime.files import safe_name
from tests.fuzzing import CANARY, changed_json, files_below, fuzz, hostile_json, mutated, names, only_user_errors, texts
from tests.recorded_runs import MadeTask, choice_item, text_item, window_item, write_run

TASKS = [
    MadeTask(
        "choices", "mul",
        {
            "a/dev.jsonl": [choice_item(0, 1), choice_item(1, 0, choices=3)],
            "b/dev.jsonl": [choice_item(0, 0), choice_item(1, 1)],
        },
    ),
    MadeTask("writing", "gen", {"dev.jsonl": [text_item(0, "x", ["x", "y"]), text_item(1, "", ["z"])]}),
    MadeTask("text", "lm", {"test.txt": [window_item(0, 3.5), window_item(1, 2.0)]}),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluation.statistics.RESAMPLES", 20)  # what a figure is worth is not asked here
        yield written_runs(tmp_path_factory)


def written_runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name in ("one", "other"):
        write_run(folder / name, TASKS, absent=["none"])
    return folder


@contextlib.contextmanager
def restored(path, good):
    try:
        yield
    finally:
        path.write_text(good, encoding="utf-8")


def show(folder, good) -> None:
    """Everything that reads a finished run."""
    for attempt in (
        lambda: compare(good, folder),
        lambda: compare(folder, good, common=True),
        lambda: write_report(folder),
    ):
        try:
            found = attempt()
        except UserError:
            continue
        if isinstance(found, Path):
            closing_table(RecordedRun(folder).results)
        else:
            comparison_table(found.record)
            flip_lines(found.flipped, 3)
            json.dumps(found.record)
    compare(good, folder)


@fuzz(25, data=st.data())
def test_damaged_results(runs, data):
    path = runs / "other" / "results.json"
    good = (runs / "one" / "results.json").read_text(encoding="utf-8")
    kind = data.draw(st.sampled_from(["values", "values", "values", "bytes", "text"]))
    if kind == "bytes":
        path.write_bytes(data.draw(mutated(good.encode())))
    else:
        path.write_text(
            data.draw(hostile_json) if kind == "text" else json.dumps(changed_json(json.loads(good), data.draw)),
            encoding="utf-8",
            errors="surrogatepass",
        )
    before = files_below(runs)
    with only_user_errors("results.json"), restored(path, good):
        show(runs / "other", runs / "one")
    assert {file.name for file in files_below(runs) - before} <= {"report.html"}
    compare(runs / "one", runs / "other")


DOTTED = ["evil.T", "data.evil.T", "commands.evaluate.main", "os.system", "evaluation.compare.evil.T", "tasks.evil.T",
          "tasks.mmlu.task.MMLU", "tasks.ethnic.stereoset.StereoSet", "tasks.language_modeling.pile.Pile", "Accuracy"]


@fuzz(8, module=st.sampled_from([None, *DOTTED]), metrics=st.lists(st.sampled_from(DOTTED), max_size=2))
def test_no_name_in_results_is_code(runs, module, metrics):
    path, good = runs / "other" / "results.json", (runs / "one" / "results.json").read_text(encoding="utf-8")
    results = json.loads(good)
    for folder in (runs / "other", runs / "other" / "data"):
        folder.mkdir(exist_ok=True)
        (folder / "evil.py").write_text(f"import os\nos.environ[{CANARY!r}] = '1'\ndef T(item):\n    return 1.0\n")
    for task in results["tasks"].values():
        task["config"] |= {"module": module, "metrics": metrics, "path": str(runs / "other" / "data")}
        task["file"] = str(runs / "other" / "task.yaml")
    path.write_text(json.dumps(results), encoding="utf-8")
    with only_user_errors("names of code in results.json"), restored(path, good):
        show(runs / "other", runs / "one")


@fuzz(15, data=st.data(), name=st.sampled_from(["choices/a/dev", "writing/dev", "text/test.txt"]))
def test_damaged_samples(runs, data, name):
    path = runs / "other" / "samples" / f"{name}.jsonl"
    good = (runs / "one" / "samples" / f"{name}.jsonl").read_text(encoding="utf-8")
    lines = good.splitlines()
    kind = data.draw(st.sampled_from(["values", "values", "bytes", "text"]))
    if kind == "values":
        lines[0] = json.dumps(changed_json(json.loads(lines[0]), data.draw))
    elif kind == "text":
        lines[1] = data.draw(hostile_json)
    content = "\n".join(lines).encode("utf-8", "surrogatepass")
    path.write_bytes(data.draw(mutated(content)) if kind == "bytes" else content)
    with only_user_errors("samples"), restored(path, good):
        show(runs / "other", runs / "one")


@fuzz(
    5,
    text=st.lists(
        st.one_of(texts, names, st.sampled_from(["<script>", "</td><img src=x onerror=y>", "'\"&<>"])),
        min_size=4,
        max_size=4,
    ),
    name=names,
)
def test_no_text_becomes_markup_and_no_name_a_path(tmp_path_factory, text, name):
    folder = tmp_path_factory.mktemp("page")
    outside = files_below(folder.parent)
    with only_user_errors("reports") as messages:
        made = MadeTask(
            f"{text[0]}{name}".encode("utf-8", "replace").decode(), "gen",
            {"dev.jsonl": [text_item(0, text[1], [text[2]], note=text[3])]},
            metrics=["EM"],
        )
        write_run(folder / "run", [made])
        page = report(RecordedRun(folder / "run"))
    assert not messages
    for mark in ("<script", "<img src=x", "onerror=y>"):
        assert mark not in page
    assert all(path.is_relative_to(folder / "run") for path in files_below(folder.parent) - outside)
    shutil.rmtree(folder)


ANSWERS = {"one": {"log_probs": [-1.5, -2.25]}, "two": {"beams": [[1, 2]], "scores": [None]}}


@fuzz(100, data=st.data())
def test_a_damaged_journal_holds_only_what_was_written(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "journal.jsonl"
    path.unlink(missing_ok=True)
    with Journal(path) as journal:
        journal.add(ANSWERS.items())
    change = st.one_of(mutated(path.read_bytes()), hostile_json.map(lambda text: text.encode("utf-8", "surrogatepass")))
    path.write_bytes(data.draw(change))
    with only_user_errors("journals of evaluations") as messages, Journal(path) as journal:
        assert journal.answers.items() <= ANSWERS.items()
        journal.add(ANSWERS.items())
    assert not messages
    with Journal(path) as journal:
        assert journal.answers == ANSWERS


FACTS = {
    "checkpoint": {"sha256": "a"}, "tokenizer": {"sha256": "b"}, "code": {"sha256": "c"}, "tasks": {"t": "d"},
    "settings": {
        "dtype": "float32", "device": "cpu", "quantization": None, "model": {"num_layers": 2}, "data_path": "data",
        "limit": None, "allow_missing": False,
    },
}


@fuzz(100, data=st.data())
def test_a_damaged_settings_file_is_another_run(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("settings")
    settings = Settings(folder, folder, folder)
    with contextlib.ExitStack() as stack:
        Keeper(FACTS, {}, settings, stack)
    path = folder / "settings.json"
    good = path.read_text(encoding="utf-8")
    path.write_bytes(
        data.draw(
            st.one_of(
                mutated(good.encode()),
                hostile_json.map(str.encode),
                st.builds(
                    lambda value: json.dumps(value).encode(),
                    st.just(json.loads(good)).flatmap(
                        lambda value: st.composite(lambda draw: changed_json(value, draw))()
                    ),
                ),
            )
        )
    )
    with only_user_errors("settings.json") as messages, contextlib.ExitStack() as stack:
        Keeper(FACTS, {}, settings, stack)
    try:
        now = json.loads(path.read_bytes())
        is_same = all(now.get(key) == value for key, value in json.loads(good).items())
    except (ValueError, RecursionError, AttributeError):
        is_same = False
    assert is_same or messages
    shutil.rmtree(folder)


ids = st.one_of(names, texts, st.just("same"), st.just("results"), st.text("./\\~\0 ", max_size=8))


@fuzz(10, given_ids=st.lists(ids, min_size=1, max_size=6), prompt=st.one_of(texts, names))
def test_ids_and_prompts_become_files_of_the_folder(tmp_path_factory, given_ids, prompt):
    folder = tmp_path_factory.mktemp("answers")
    source = folder / "prompts.txt"
    rows = [f"{name}\t{prompt}" for name in given_ids]
    source.write_bytes("\n".join(rows).encode("utf-8", "surrogatepass"))
    outside = files_below(folder.parent)
    for with_id in (True, False):
        with only_user_errors("ids and prompts as file names") as messages:
            lines = read_prompts(source, with_id)
            with Results(folder / "out", lines, overwrite=True) as results:
                results.open({})
                for line in lines:
                    results.add(line.index, Result(line.text, "x", ["x"], beams=[Beam("x\ud800", ["x"], [1], None)]))
                results.sort()
        assert not messages or "the file is empty" in messages[0]
    made = files_below(folder.parent) - outside
    assert all(path.resolve().parent == (folder / "out").resolve() for path in made)
    shutil.rmtree(folder)


@fuzz(80, data=st.data())
def test_damaged_answers_are_not_resumed(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("resume")
    (folder / "prompts.txt").write_text("a\tone\nb\ttwo\n", encoding="utf-8")
    lines = read_prompts(folder / "prompts.txt", with_id=True)
    with Results(folder / "out", lines) as results:
        results.open({"seed": 1})
        results.write_settings({"facts": {"seed": 1}})
        for line in lines:
            results.add(line.index, Result(line.text, "x", ["x"], beams=[Beam("x", ["x"], [1], None)]))
    name = data.draw(st.sampled_from(["results.jsonl", "settings.json"]))
    path = folder / "out" / name
    first, *rest = path.read_text(encoding="utf-8").splitlines() if name == "results.jsonl" else [path.read_text()]
    kind = data.draw(st.sampled_from(["values", "bytes", "text"]))
    if kind == "values":
        first = json.dumps(changed_json(json.loads(first), data.draw))
    elif kind == "text":
        first = data.draw(hostile_json)
    content = "\n".join([first, *rest, ""]).encode("utf-8", "surrogatepass")
    path.write_bytes(data.draw(mutated(content)) if kind == "bytes" else content)
    with only_user_errors("answers to be resumed"), Results(folder / "out", lines, resume=True) as results:
        results.open({"seed": 1})
        assert all(set(value) >= {"prompt", "text", "beams"} for value in results.done.values())
    shutil.rmtree(folder)


@fuzz(200, found=st.lists(st.one_of(names, texts), max_size=5, unique=True))
def test_names_of_tasks_become_folders_of_their_own(found):
    with only_user_errors("names as folders") as messages:
        names_found = sample_names(dict.fromkeys(found, ("dev.jsonl",))).values()
        folders = [name.removesuffix("/dev.jsonl") for name in names_found]
        assert len(set(folders)) == len(found)
        for folder in folders:
            assert safe_name(folder) == folder == os.path.normpath(folder) and len(os.fsencode(folder)) < 250
    assert not messages


def test_what_is_undamaged_is_accepted(runs, tmp_path):
    show(runs / "other", runs / "one")
    write_json(tmp_path / "a.json", {})
