"""The Chinese tasks: what the readers make of raw rows, the prompts, the task files, and the real data."""

import json
import re
from pathlib import Path

import pytest

from evaluation.discovery import data_files
from evaluation.plan import look
from evaluation.task_file import load_task
from tests.chinese_rows import RAW, raw_folder, write
from tools.preparing import chinese, fewclue
from tools.preparing.recipes import FOLDER, load_recipe
from tools.preparing.writing import prepare

ROOT = Path(__file__).resolve().parent.parent
DATASETS = ROOT.parent / "shared" / "datasets"
GOLDEN = ROOT.parent / "shared" / "golden" / "evaluation" / "data" / "CLUE"
TASK_FILES = sorted((ROOT / "tasks" / "chinese").glob("*/*.yaml"))
RECIPES = [load_recipe(path) for path in sorted(FOLDER.glob("*CLUE_*.yaml"))]

with_datasets = pytest.mark.skipif(not DATASETS.is_dir(), reason=f"no raw data sets in {DATASETS}")
with_golden = pytest.mark.skipif(not (DATASETS.is_dir() and GOLDEN.is_dir()), reason=f"no golden rows in {GOLDEN}")

@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A folder with a tiny raw data set of every task."""
    return raw_folder(tmp_path_factory.mktemp("raw"))


def prepared(recipe, raw, output):
    """{(prompt, split): rows} as written."""
    prepare(recipe, raw, output)
    files = sorted((output / recipe.output).glob("*/*.jsonl"))
    return {(path.parent.name, path.stem): [json.loads(line) for line in path.open(encoding="utf-8")] for path in files}


def only(rows, *names):
    return [tuple(row[name] for name in names) for row in rows]


# What the readers make of the raw rows


def test_pairs_of_sentences(raw):
    assert chinese.afqmc(raw) == {"dev": [
        {"sentence1": "怎样开户", "sentence2": "开户的办法是什么", "label": 1},
        {"sentence1": "怎样开户", "sentence2": "怎样销户", "label": 0},
    ]}


def test_cmnli_is_both_halves(raw):
    rows = chinese.cmnli(raw)["dev"]
    assert only(rows, "premise", "hypothesis", "label") == [
        ("桌上有三个梨。", "桌上有水果。", 0),
        ("桌上有三个梨。", "桌上只有梨。", 1),
        ("桌上有三个梨。", "桌上是空的。", 2),
    ]


def test_ocnli_rows_without_a_majority_label_are_left_out_with_the_reason(raw):
    rows = chinese.ocnli(raw)["dev"]
    assert [row.get("label") for row in rows] == [0, 1, 2, None]
    assert [row.get("left_out") for row in rows] == [None, None, None, "no majority label"]


def test_left_out_rows_are_counted(raw, tmp_path):
    (account,) = prepare(load_recipe(FOLDER / "CLUE_ocnli.yaml"), raw, tmp_path)
    assert account.line() == "dev: 4 rows read, 3 written to each of 3 files, 1 left out (no majority label)"


def test_cluewsc_is_both_halves_with_the_pronoun_marked(raw):
    assert chinese.cluewsc(raw)["dev"] == [
        {"text": "小李把伞借给小王，因为【他】没带伞。", "replaced": "小李把伞借给小王，因为小王没带伞。",
         "pronoun": "他", "candidate": "小王", "label": 1},
        {"text": "小李把伞借给小王，因为【他】没带伞。", "replaced": "小李把伞借给小王，因为小李没带伞。",
         "pronoun": "他", "candidate": "小李", "label": 0},
    ]


def test_c3_has_a_row_for_each_question_with_its_own_choices(raw):
    rows = chinese.c3(raw)["dev"]
    assert only(rows, "context", "question", "choices", "label", "source", "document") == [
        ("女：饿了吗?男：刚吃过。", "男的是什么意思?", ["很饿", "不饿", "想睡"], 1, "dialogue", "1-1"),
        ("女：饿了吗?男：刚吃过。", "谁先说话?", ["女的", "男的"], 0, "dialogue", "1-1"),
        ("河边长着一棵老树。", "树在哪里?", ["山上", "河边"], 1, "mixed", "m1"),
    ]


@pytest.mark.parametrize("reader", [chinese.cmrc2018, chinese.drcd])
def test_answers_that_differ_are_all_kept_and_once(reader, raw):
    assert reader(raw)["dev"] == [
        {"context": "石桥建于1905年。", "question": "石桥建于何时？", "answers": ["1905年", "1905"], "id": "q1"}]


def test_keywords_are_one_text(raw):
    assert only(chinese.csl(raw)["dev"], "keywords", "label") == [("水稻、产量", 1), ("水稻、钢铁", 0)]


def test_rows_of_fewclue_stand_in_for_csl_and_are_named_so(raw, tmp_path):
    write(tmp_path / "fewclue-csl" / "test_public.json", *RAW["fewclue-csl/test_public.json"])
    assert chinese.csl(tmp_path) == {"fewclue_test_public": fewclue.csl(raw)["test_public"]}
    write(tmp_path / "clue-csl" / "dev.json", *RAW["clue-csl/dev.json"])
    assert [*chinese.csl(tmp_path)] == ["dev"]


def test_fewclue_has_two_splits(raw):
    for reader in (fewclue.bustm, fewclue.chid, fewclue.cluewsc, fewclue.csl, fewclue.eprstmt, fewclue.ocnli):
        assert [*reader(raw)] == ["dev_few_all", "test_public"]


def test_reviews(raw):
    assert only(fewclue.eprstmt(raw)["test_public"], "sentence", "label") == [("很好用！", 1), ("用了一天就坏了", 0)]


def test_chid_cuts_the_text_at_its_blank(raw):
    (row,) = fewclue.chid(raw)["test_public"]
    assert (row["before"], row["after"], row["options"]) == ("祝你", ",早日归来", "一帆风顺、画蛇添足、半途而废")
    assert row["filled"] == ["一帆风顺,早日归来", "画蛇添足,早日归来", "半途而废,早日归来"]
    assert (row["idioms"][row["label"]], row["label"]) == ("一帆风顺", 0)


def test_fewclue_cluewsc_marks_pronoun_and_candidate_whichever_comes_first(raw):
    assert only(fewclue.cluewsc(raw)["test_public"], "text", "replaced", "label") == [
        ("小李把伞借给「小王」，因为【他】没带伞。", "小李把伞借给小王，因为小王没带伞。", 1),
        ("【他】说，「小王」没带伞。", "小王说，小王没带伞。", 0),
    ]


# What is written


@pytest.mark.parametrize("name, expected", [
    ("CLUE_c3", "女：饿了吗?男：刚吃过。问题：男的是什么意思? 答案："),
    ("CLUE_cmrc2018", "石桥建于1905年。 问题：石桥建于何时？ 答案："),
    ("CLUE_drcd", "石桥建于1905年。 問題：石桥建于何时？ 答案："),
])
def test_plain_prompts_of_the_reading_tasks(name, expected, raw, tmp_path):
    rows = prepared(load_recipe(FOLDER / f"{name}.yaml"), raw, tmp_path)["plain", "dev"]
    assert rows[0]["inputs_pretokenized"] == expected


def test_all_answers_are_targets(raw, tmp_path):
    (row,) = prepared(load_recipe(FOLDER / "CLUE_cmrc2018.yaml"), raw, tmp_path)["plain", "dev"]
    assert row["targets_pretokenized"] == ["1905年", "1905"] and row["id"] == "q1"


def test_choices_of_c3_are_those_of_the_row(raw, tmp_path):
    rows = prepared(load_recipe(FOLDER / "CLUE_c3.yaml"), raw, tmp_path)["options", "dev"]
    assert only(rows, "choices_pretokenized", "label")[0] == (["很饿", "不饿", "想睡"], 1)
    assert "选项：很饿；不饿；想睡\n" in rows[0]["inputs_pretokenized"]


# For every prompt of every task of two or three answers: the choice that is right for each kind of label
RIGHT = {
    "CLUE/afqmc": [{"不同", "否", "不能"}, {"相同", "是", "能"}],
    "FewCLUE/bustm": [{"不同", "否", "不能"}, {"相同", "是", "能"}],
    "CLUE/cmnli": [{"蕴含", "对", "真"}, {"中立", "不一定", "未知"}, {"矛盾", "错", "假"}],
    "CLUE/ocnli": [{"蕴含", "对", "真"}, {"中立", "不一定", "未知"}, {"矛盾", "错", "假"}],
    "FewCLUE/ocnli": [{"蕴含", "对", "真"}, {"中立", "不一定", "未知"}, {"矛盾", "错", "假"}],
    "CLUE/cluewsc": [{"否", "错", "不同"}, {"是", "对", "相同"}],
    "FewCLUE/cluewsc": [{"否", "错", "不同"}, {"是", "对", "相同"}],
    "CLUE/csl": [{"否", "错误", "不能"}, {"是", "正确", "能"}],
    "FewCLUE/csl": [{"否", "错误", "不能"}, {"是", "正确", "能"}],
    "FewCLUE/eprstmt": [{"差评", "否", "消极"}, {"好评", "是", "积极"}],
}


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if recipe.output in RIGHT], ids=lambda r: r.output)
def test_the_right_choice_of_every_prompt(recipe, raw, tmp_path):
    written = prepared(recipe, raw, tmp_path)
    split = "dev" if recipe.output.startswith("CLUE/") else "test_public"
    labels = [row["label"] for row in recipe.read(raw)[split] if "left_out" not in row]
    for place, label in enumerate(labels):
        rows = [rows[place] for (_, written_split), rows in written.items() if written_split == split]
        assert [row["label"] for row in rows] == [label] * 3
        assert {row["choices_pretokenized"][row["label"]] for row in rows} == RIGHT[recipe.output][label]
    assert set(labels) == set(range(len(RIGHT[recipe.output])))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.output)
def test_no_doubled_punctuation_and_no_mask(recipe, raw, tmp_path):
    for rows in prepared(recipe, raw, tmp_path).values():
        for row in rows:
            text = row["inputs_pretokenized"]
            assert not re.search(r"[。，、；：！？?.,]{2}|““|””", text) and "MASK]" not in text, text
            assert text == text.strip()


def test_the_same_task_has_the_same_prompts_in_clue_and_fewclue():
    prompts = {recipe.output: recipe.prompts for recipe in RECIPES}
    for task in ("cluewsc", "csl", "ocnli"):
        assert prompts[f"CLUE/{task}"] == prompts[f"FewCLUE/{task}"]
    assert prompts["CLUE/cmnli"] == prompts["CLUE/ocnli"]


# The task files


def test_there_is_a_task_file_for_every_recipe():
    paths = [load_task(path, "").path for path in TASK_FILES]
    assert sorted(paths) == sorted(recipe.output for recipe in RECIPES) and len(paths) == 14


@pytest.mark.parametrize("path", TASK_FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_evaluator_reads_every_file_that_is_written_and_each_in_one_group(path, raw, tmp_path):
    config = load_task(path, tmp_path)
    recipe = next(recipe for recipe in RECIPES if tmp_path / recipe.output == Path(config.path))
    written = prepared(recipe, raw, tmp_path)
    groups = data_files(config)
    found = [f"{file.parent.name}/{file.stem}" for files in groups.values() for file in files]
    assert sorted(found) == ["/".join(name) for name in sorted(written)]
    assert len(groups) == len({split for _, split in written})
    rows = look([config], allow_missing=False)[config.name].rows  # raises for a row that does not fit the task's type
    assert sum(rows.values()) == sum(map(len, written.values()))


# The real data sets, where they are


COUNTS = {  # rows written; from the README of the data sets
    "CLUE/afqmc": {"dev": 4316}, "CLUE/c3": {"dev": 1825 + 1991}, "CLUE/cluewsc": {"dev": 304},
    "CLUE/cmnli": {"dev": 12235}, "CLUE/cmrc2018": {"dev": 3219}, "CLUE/drcd": {"dev": 3524},
    "CLUE/ocnli": {"dev": 2950}, "CLUE/csl": {"fewclue_test_public": 2838},
    "FewCLUE/bustm": {"dev_few_all": 160, "test_public": 1772},
    "FewCLUE/chid": {"dev_few_all": 202, "test_public": 2002},
    "FewCLUE/cluewsc": {"dev_few_all": 159, "test_public": 976},
    "FewCLUE/csl": {"dev_few_all": 160, "test_public": 2838},
    "FewCLUE/eprstmt": {"dev_few_all": 160, "test_public": 610},
    "FewCLUE/ocnli": {"dev_few_all": 160, "test_public": 2520},
}


@with_datasets
@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if recipe.output in COUNTS], ids=lambda r: r.output)
def test_real_counts(recipe, tmp_path):
    accounts = prepare(recipe, DATASETS, tmp_path)
    for account in accounts:
        assert set(account.written.values()) == {COUNTS[recipe.output][account.split]}
        assert len(account.written) == len(recipe.prompts)
    assert [account.split for account in accounts] == [*COUNTS[recipe.output]]


@with_datasets
@pytest.mark.parametrize("name", ["bustm", "chid", "cluewsc", "csl", "eprstmt", "ocnli"])
def test_dev_few_all_holds_the_small_development_sets(name):
    def rows_of(split):
        lines = (DATASETS / f"fewclue-{name}" / f"{split}.json").read_text(encoding="utf-8").splitlines()
        rows = [{key: value for key, value in json.loads(line).items() if key not in ("id", "idx")} for line in lines]
        return {json.dumps(row, sort_keys=True) for row in rows}

    assert rows_of("dev_few_all") == set().union(*(rows_of(f"dev_{part}") for part in range(5)))


@with_golden
@pytest.mark.parametrize("name", ["c3", "cmrc2018"])
def test_plain_prompts_have_the_shape_of_the_original_rows(name, tmp_path):
    rows = prepared(load_recipe(FOLDER / f"CLUE_{name}.yaml"), DATASETS, tmp_path)["plain", "dev"]
    texts = {row["inputs_pretokenized"] for row in rows}
    files = sorted((GOLDEN / name).glob("*.jsonl"))
    golden = [json.loads(line) for path in files for line in path.open(encoding="utf-8")]
    assert golden and all(row["inputs_pretokenized"] in texts for row in golden)
