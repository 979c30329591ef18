"""Preparing data: recipes are read strictly, rows in are rows out, and every task's file has its recipe."""

import json
import subprocess
import sys
from pathlib import Path
from string import Template

import pytest
import yaml

from runtime.errors import UserError
from tools import prepare_data
from tools.preparing.raw import MissingRawFile, read_csv, read_json, read_jsonl, read_tsv
from tools.preparing.recipes import FOLDER, Prompt, choose, load_recipe, load_recipes, reader_of
from tools.preparing.writing import line_of, prepare, render, strangers

ROOT = Path(__file__).resolve().parent.parent
RECIPES = load_recipes()
TASK_FILES = sorted((ROOT / "tasks").rglob("*.yaml"))

RECIPE = Template("""
output: own/birds
title: Birds
source: https://example.org/birds
licence: CC0
reader: english_texts.axg
prompts:
  plain:
    inputs: "$inputs"
    choices: ["yes", "no"]
    label: label
  short:
    inputs: "{hypothesis}"
    choices: ["so", "not so"]
    label: label
    keep: [premise]
""")
ROWS = [{"premise": "A heron stands in the pond.", "hypothesis": "The pond is not empty.", "label": "entailment"},
        {"premise": "A heron stands in the pond.", "hypothesis": "It is a young heron.", "label": "not_entailment"}]


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw" / "superglue_axg"
    folder.mkdir(parents=True)
    (folder / "AX-g.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return tmp_path / "raw"


def recipe_of(tmp_path, text, name="own_birds.yaml"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return load_recipe(path)


def birds(tmp_path, inputs="{premise} {hypothesis}"):
    return recipe_of(tmp_path, RECIPE.substitute(inputs=inputs))


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


# Rows in, rows out


def test_each_prompt_gets_a_file_with_every_row(tmp_path, raw):
    (account,) = prepare(birds(tmp_path), raw, tmp_path / "data")
    assert account.line() == "test: 2 rows read, 2 written to each of 2 files"
    assert lines_of(tmp_path / "data" / "own" / "birds" / "plain" / "test.jsonl") == [
        {"inputs_pretokenized": "A heron stands in the pond. The pond is not empty.",
         "choices_pretokenized": ["yes", "no"], "label": 0},
        {"inputs_pretokenized": "A heron stands in the pond. It is a young heron.",
         "choices_pretokenized": ["yes", "no"], "label": 1}]
    assert lines_of(tmp_path / "data" / "own" / "birds" / "short" / "test.jsonl")[0] == {
        "inputs_pretokenized": "The pond is not empty.", "choices_pretokenized": ["so", "not so"], "label": 0,
        "premise": "A heron stands in the pond."}
    facts = (tmp_path / "data" / "own" / "birds" / "SOURCE.txt").read_text(encoding="utf-8")
    assert "https://example.org/birds" in facts and "licence: CC0" in facts and account.line() in facts


def test_a_row_without_gold_label_is_counted_and_not_written(tmp_path, raw):
    with (raw / "superglue_axg" / "AX-g.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(ROWS[0] | {"label": "-"}) + "\n")
    (account,) = prepare(birds(tmp_path), raw, tmp_path / "data")
    assert account.line() == "test: 3 rows read, 2 written to each of 2 files, 1 left out (no gold label)"


def test_preparing_twice_gives_the_same_bytes_and_strangers_are_named(tmp_path, raw):
    data = tmp_path / "data"
    accounts = prepare(birds(tmp_path), raw, data)
    first = {path: path.read_bytes() for path in data.rglob("*.*")}
    prepare(birds(tmp_path), raw, data)
    assert {path: path.read_bytes() for path in data.rglob("*.*")} == first
    (data / "own" / "birds" / "old.jsonl").write_text("{}\n", encoding="utf-8")
    assert strangers(birds(tmp_path), data, accounts) == [data / "own" / "birds" / "old.jsonl"]


def test_no_line_end_of_unicode_cuts_a_row():
    row = {"text": "one\u2028two\u0085three\nfour"}
    written = line_of(row)
    assert len(written.splitlines()) == 1
    assert json.loads(written) == row


# What a template may hold


def test_a_field_that_a_row_does_not_have(tmp_path, raw):
    with pytest.raises(UserError, match="own_birds.yaml: plain: test: row 1: there is no field 'colour'; "
                                        "the row has premise, hypothesis, label"):
        prepare(birds(tmp_path, "{colour}"), raw, tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("template", ["{", "{premise[0]}", "{premise.real}", "{premise!r}", "{0}", "{premise:>9}"])
def test_only_plain_names_are_filled_in(tmp_path, template):
    with pytest.raises(UserError, match="own_birds.yaml: prompts: plain: .*literal braces are doubled"):
        birds(tmp_path, template)


def test_what_templates_give():
    prompt = Prompt(inputs="{{{word}}}", choices="{words}", label="place", targets="{words}", keep=("words",))
    row = {"word": "tit", "words": ["tit", "owl"], "place": 1}
    assert render(prompt, row, "x") == {
        "inputs_pretokenized": "{tit}", "choices_pretokenized": ["tit", "owl"],
        "targets_pretokenized": ["tit", "owl"], "label": 1, "words": ["tit", "owl"]}
    assert render(Prompt(targets="the {word}"), row, "x") == {"targets_pretokenized": ["the tit"]}
    shots = Prompt(inputs="{examples}Q: {q}\nA:", example="Q: {q}\nA: {a}\n\n")
    rows = {"q": "3?", "examples": [{"q": "1?", "a": "1"}, {"q": "2?", "a": "2"}]}
    assert render(shots, rows, "x") == {"inputs_pretokenized": "Q: 1?\nA: 1\n\nQ: 2?\nA: 2\n\nQ: 3?\nA:"}


@pytest.mark.parametrize("label", [2, -1, "yes", True, None])
def test_a_label_is_the_place_of_a_choice(label):
    with pytest.raises(UserError, match="is not the place of one of 2 choices"):
        render(Prompt(choices=("a", "b"), label="label"), {"label": label}, "x")


def test_a_list_is_no_text_and_a_text_no_list():
    with pytest.raises(UserError, match="x: words: .* is not a text"):
        render(Prompt(inputs="{words}"), {"words": ["tit"]}, "x")
    with pytest.raises(UserError, match="x: choices: words: expected a list of texts, found"):
        render(Prompt(choices="{words}"), {"words": []}, "x")


# What a recipe may hold


@pytest.mark.parametrize("old, new, message", [
    ("licence:", "license:", "unknown key 'license'; did you mean licence\\?"),
    ("inputs:", "input:", "prompts: plain: unknown key 'input'; did you mean inputs\\?"),
    ("output: own/birds", "output: own/owls", "output 'own/owls' belongs into own_owls.yaml"),
    ("title: Birds", "title:", "title: missing; a text is needed"),
    ('["yes", "no"]', "[yes, no]", r"'yes' means one thing in YAML 1.1 and another in 1.2"),
    ("reader: english_texts.axg", "reader: english_texts", "reader: 'english_texts' is not module.function"),
    ("reader: english_texts.axg", "note: none", "without a reader the key where must say"),
    ("prompts:", "text: {a: test}\nprompts:", "either prompts or text is needed"),
    ("title: Birds", "title: [Birds", "not valid YAML"),
])
def test_a_wrong_recipe_names_file_and_key(tmp_path, old, new, message):
    text = RECIPE.substitute(inputs="{premise}")
    assert old in text
    with pytest.raises(UserError, match=f"own_birds.yaml:.*{message}"):
        recipe_of(tmp_path, text.replace(old, new, 1))


def test_a_reader_that_is_not_there(tmp_path):
    text = RECIPE.substitute(inputs="{premise}")
    for reader, message in (("glue.axg", "no tools/preparing/glue.py"), ("raw.axg", "raw.py has no function axg")):
        with pytest.raises(UserError, match=message):
            reader_of(recipe_of(tmp_path, text.replace("english_texts.axg", reader)))


# Raw files


def test_a_raw_file_at_fault_is_named_with_its_line(tmp_path):
    path = tmp_path / "raw.txt"
    with pytest.raises(MissingRawFile, match="raw.txt: no such file"):
        read_tsv(path)
    for content, read, message in [
        ("a\tb\n1\n", read_tsv, "raw.txt:2: 1 columns, expected 2: a, b"),
        ("a,b\n1,2\n1,2,3\n", read_csv, "raw.txt:3: 3 columns, expected 2: a, b"),
        ("", read_tsv, "raw.txt: empty"),
        ('{"a": 1}\n\n{"a"\n', read_jsonl, "raw.txt:3: not valid JSON"),
        ("[1]\n", read_jsonl, "raw.txt:1: expected a JSON object"),
        ("{", read_json, "raw.txt:1: not valid JSON"),
    ]:
        path.write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=message):
            read(path)
    path.write_bytes(b"{\xff")
    with pytest.raises(UserError, match="raw.txt:1: not valid UTF-8"):
        read_json(path)


def test_raw_rows_without_an_expected_field(tmp_path):
    path = tmp_path / "crows-pairs" / "crows_pairs_anonymized.csv"
    path.parent.mkdir()
    path.write_text("first,second\na,b\n", encoding="utf-8")
    with pytest.raises(UserError, match="crows-pairs: a raw row has no field 'bias_type'; are these the files of http"):
        prepare(RECIPES["crows-pairs"], tmp_path, tmp_path / "data")


# The command line


def test_a_named_task_says_which_raw_file_is_missing(tmp_path, raw, capsys):
    assert prepare_data.main(["--raw", str(raw), "--output", str(tmp_path / "data"), "bloom/superglue_axb"]) == 2
    assert "error: bloom/superglue_axb: " in (message := capsys.readouterr().err)
    assert "AX-b.jsonl: no such file (put AX-b.jsonl" in message


def test_without_names_what_is_there_is_prepared_and_the_rest_listed(tmp_path, raw, capsys):
    assert prepare_data.main(["--raw", str(raw), "--output", str(tmp_path / "data")]) == 0
    printed = capsys.readouterr().out
    assert "bloom/superglue_axg (SuperGLUE AX-g" in printed and "licence: " in printed
    assert "test: 2 rows read, 2 written to each of 3 files" in printed
    assert f"1 task prepared in {tmp_path / 'data'}" in printed
    assert f"{len(RECIPES) - 1} tasks without raw files:" in printed


def test_mistakes_on_the_command_line(tmp_path, raw, capsys):
    data = str(tmp_path / "data")
    (tmp_path / "empty").mkdir()
    for arguments, message in [
        (["--raw", str(raw), "--output", data, "bloom/superglue_axh"], "did you mean bloom/superglue_ax"),
        (["--raw", str(tmp_path / "none"), "--output", data], "none: no such folder"),
        (["--raw", str(tmp_path / "empty"), "--output", data], "holds the files of no task; --list shows what is read"),
    ]:
        assert prepare_data.main(arguments) == 2
        assert message in capsys.readouterr().err
    for arguments, message in [(["--raw", str(raw)], "error: --raw and --output are needed (or --list)\n"),
                               (["--lsit"], "error: unknown argument '--lsit'; did you mean --list?\n")]:
        with pytest.raises(SystemExit) as end:
            prepare_data.main(arguments)
        assert end.value.code == 2 and capsys.readouterr().err == message


def test_an_output_that_is_no_folder(tmp_path, raw, capsys):
    (tmp_path / "file").touch()
    assert prepare_data.main(["--raw", str(raw), "--output", str(tmp_path / "file")]) == 2
    assert "superglue_axg/follows: Not a directory\n" in capsys.readouterr().err


def test_a_raw_file_at_fault_does_not_keep_the_others_back(tmp_path, raw, capsys):
    (raw / "clue-ocnli").mkdir()
    (raw / "clue-ocnli" / "dev.json").write_text("{\n")
    assert prepare_data.main(["--raw", str(raw), "--output", str(tmp_path / "data")]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {raw / 'clue-ocnli' / 'dev.json'}:1: not valid JSON")
    assert "1 task prepared" in printed.out and not (tmp_path / "data" / "CLUE").exists()


def test_tasks_are_known_by_folder_file_and_title():
    for name in ("CLUE/ocnli", "CLUE_ocnli", "clue ocnli", "clue/OCNLI/"):
        assert [recipe.output for recipe in choose(RECIPES, [name])] == ["CLUE/ocnli"]


def test_help_and_list_need_no_torch():
    program = ("import sys, runpy\nsys.argv = ['prepare_data', '--list']\n"
               "try:\n    runpy.run_path('tools/prepare_data.py', run_name='__main__')\n"
               "except SystemExit as end:\n    assert not end.code\n"
               "assert not {'torch', 'numpy', 'sat'} & set(sys.modules)\n")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "bloom/glue_cola" in done.stdout and "licence: " in done.stdout


# The recipes and task files of the repository


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.output)
def test_every_recipe_is_sound(recipe):
    assert callable(reader_of(recipe)) if recipe.reader else recipe.where
    assert recipe.source.startswith("https://") and recipe.licence
    for name, prompt in recipe.prompts.items():
        assert name.isidentifier()
        for template in prompt.templates():
            assert "MASK]" not in template  # a mask is put behind the text by the evaluator
        for text in (prompt.inputs or "", *(prompt.choices or ()), *(prompt.targets or ())):
            assert text == text.strip() and "  " not in text


@pytest.mark.parametrize("path", TASK_FILES, ids=lambda path: path.stem)
def test_every_task_file_has_a_recipe(path):
    task = yaml.safe_load(path.read_text(encoding="utf-8"))
    if task["path"].startswith("./"):  # data of our own beside the task file
        assert (path.parent / task["path"]).exists()
        return
    assert task["path"] in RECIPES, f"{path}: no file in {FOLDER} has output: {task['path']}"


def test_every_recipe_has_a_task_file():
    paths = {yaml.safe_load(path.read_text(encoding="utf-8"))["path"] for path in TASK_FILES}
    assert set(RECIPES) <= paths
