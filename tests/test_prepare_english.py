"""The English tasks: what the readers make of raw rows, and the real data where it is at hand."""

import json
from pathlib import Path

import pytest

from runtime.errors import UserError
from tools.preparing import english_questions, english_texts
from tools.preparing.recipes import load_recipes
from tools.preparing.writing import prepare

ROOT = Path(__file__).resolve().parent.parent
DATASETS = ROOT.parent / "shared" / "datasets"
GOLDEN = ROOT.parent / "shared" / "golden" / "evaluation" / "data"
RECIPES = {name: recipe for name, recipe in load_recipes().items() if (recipe.reader or "").startswith("english_")}

# rows (lines of a text) that the published files hold
COUNTS = {
    "MMLU": {"stem/abstract_algebra": 100, "social_sciences/econometrics": 114, "humanities/professional_law": 1534,
             "other/anatomy": 135},
    "bigbench/formal_fallacies": {"test": 250},
    "bigbench/logical_deduction": {"three_objects": 250, "five_objects": 250, "seven_objects": 250},
    "bloom/glue_cola": {"validation": 527 + 516},
    "bloom/glue_qnli": {"validation": 5463},
    "bloom/glue_wnli": {"validation": 71},
    "bloom/math_qa": {"test": 2985},
    "bloom/mc_taco": {"validation": 3783, "test": 9442},
    "bloom/openbook_qa": {"test": 500},
    "bloom/pubmed_qa": {"test": 500, "others": 500},
    "crows-pairs": {"test": 2 * 1508},
    "ethos/few_shot_multi": {"test": 433},
    "ethos/few_shot_single": {"test": 998},
    "ethos/one_shot": {"test": 998},
    "ethos/zero_shot": {"test": 998},
    "lambada/lambada": {"test": 5153},
    "ptb": {"test": 3761, "validation": 3370},
    "stereoset": {"dev": 253 + 962 + 79, "test_sample": 799},
    "wikitext-103": {"test": 4358},
    "wikitext-2": {"test": 4358, "validation": 3760},
}
WITHOUT_DATA = {"bloom/glue_mnli", "bloom/superglue_axb", "bloom/superglue_axg", "pile"}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8", newline="")


def write_lines(path, rows):
    write(path, "".join(json.dumps(row) + "\n" for row in rows))


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


# GLUE and SuperGLUE


def test_cola_is_both_development_files(tmp_path):
    write(tmp_path / "cola" / "in_domain_dev.tsv", 'x1\t1\t\tHe said "no".\n')
    write(tmp_path / "cola" / "out_of_domain_dev.tsv", "x2\t0\t*\tSleep green the. \n")
    assert english_texts.cola(tmp_path) == {"validation": [{"sentence": 'He said "no".', "label": 1},
                                                          {"sentence": "Sleep green the.", "label": 0}]}
    write(tmp_path / "cola" / "out_of_domain_dev.tsv", "x2\t2\t*\tSleep green the.\n")
    with pytest.raises(UserError, match="out_of_domain_dev.tsv: row 1: label: '2' is not one of 0, 1"):
        english_texts.cola(tmp_path)


def test_mnli_from_glue_or_from_its_own_files(tmp_path):
    table = "index\tgenre\tsentence1\tsentence2\tgold_label\n0\tfiction\tIt rains.\tIt is wet.\tentailment\n"
    objects = [{"sentence1": "It rains.", "sentence2": "It is dry.", "gold_label": "contradiction"},
               {"sentence1": "It rains.", "sentence2": "It is March.", "gold_label": "-"}]
    write(tmp_path / "mnli" / "dev_matched.tsv", table)
    write_lines(tmp_path / "mnli" / "multinli_1.0_dev_mismatched.jsonl", objects)
    assert english_texts.mnli(tmp_path) == {
        "validation_matched": [{"sentence1": "It rains.", "sentence2": "It is wet.", "label": 0}],
        "validation_mismatched": [
            {"sentence1": "It rains.", "sentence2": "It is dry.", "label": 2},
            {"sentence1": "It rains.", "sentence2": "It is March.", "left_out": "no gold label"}]}


def test_superglue_s_diagnostics(tmp_path):
    for folder, name, texts, read in (("superglue_axb", "AX-b", ("sentence1", "sentence2"), english_texts.axb),
                                      ("superglue_axg", "AX-g", ("premise", "hypothesis"), english_texts.axg)):
        rows = [{texts[0]: "All cats sleep.", texts[1]: f"A {what}.", "label": label, "idx": place}
                for place, (what, label) in enumerate([("cat sleeps", "entailment"), ("dog", "not_entailment")])]
        write_lines(tmp_path / folder / f"{name}.jsonl", rows)
        assert [row["label"] for row in read(tmp_path)["test"]] == [0, 1]
        write_lines(tmp_path / folder / f"{name}.jsonl", [rows[0], {texts[0]: "x", "label": "entailment"}])
        with pytest.raises(UserError, match=f"{name}.jsonl: row 2: {texts[1]}: missing, or not a text"):
            read(tmp_path)


# Questions


@pytest.mark.parametrize("options, expected", [
    ("A ) 38 , B ) 27.675 , C ) rs . 3 , D ) DAtA inADEquAtE , E ) nonE oF thEsE",
     ["38", "27.675", "rs . 3", "data inadequate", "none of these"]),
    ("A ) A ) 2 , B ) 5 / 3 , C ) C ) 1 , 200 , D ) D ) 5 , E ) E ) 8", ["2", "5 / 3", "1 , 200", "5", "8"]),
    ("['A ) A ) 4 inChEs', 'B ) B ) 6 inChEs', 'C ) 5', 'D ) 8', 'E ) 10 inChEs']",
     ["4 inches", "6 inches", "5", "8", "10 inches"]),
])
def test_math_qa_s_options_are_mended(tmp_path, options, expected):
    row = {"instruction": f"how many ? The options: {options}", "answer": "C"}
    write(tmp_path / "math_qa" / "test.json", json.dumps([row]))
    (found,) = english_questions.math_qa(tmp_path)["test"]
    assert (found["question"], found["choices"], found["label"]) == ("how many ?", expected, 2)
    assert [found[letter] for letter in "abcde"] == expected


def test_the_data_sets_own_files_are_read_as_well(tmp_path):
    problem = {"Problem": "how many ?", "options": "a ) 1 , b ) 2 , c ) 3 , d ) 4 , e ) 5", "correct": "b"}
    write(tmp_path / "math_qa" / "test.json", json.dumps([problem]))
    (row,) = english_questions.math_qa(tmp_path)["test"]
    assert (row["question"], row["choices"], row["label"]) == ("how many ?", ["1", "2", "3", "4", "5"], 1)
    texts = {"A": "fly", "B": "read", "C": "drive", "D": "melt"}
    choices = [{"text": text, "label": label} for label, text in texts.items()]
    write_lines(tmp_path / "openbook_qa" / "test.jsonl",
                [{"id": "1", "question": {"stem": "Geese", "choices": choices}, "answerKey": "A"}])
    (row,) = english_questions.openbook_qa(tmp_path)["test"]
    assert (row["question"], row["d"], row["label"]) == ("Geese", "melt", 0)


def test_openbook_qa(tmp_path):
    text = ("Please choose the correct answer to the question: Geese\n\nAnswer1: fly Answer2: read a book "
            "Answer3: drive Answer4: melt\n\nAnswer format: answer1/answer2/answer3/answer4")
    write(tmp_path / "openbook_qa" / "test.json", json.dumps([{"instruction": text, "answer": "answer1"}]))
    (row,) = english_questions.openbook_qa(tmp_path)["test"]
    assert (row["question"], row["choices"], row["label"]) == ("Geese", ["fly", "read a book", "drive", "melt"], 0)
    write(tmp_path / "openbook_qa" / "test.json", json.dumps([{"instruction": "Geese", "answer": "answer1"}]))
    with pytest.raises(UserError, match="test.json: row 1: instruction: expected a question and Answer1: to Answer4:"):
        english_questions.openbook_qa(tmp_path)


def test_pubmed_qa_s_test_set_is_cut_out(tmp_path):
    row = {"QUESTION": "Does it help?", "CONTEXTS": ["We asked.", "It did."], "final_decision": "yes"}
    write(tmp_path / "pubmed_qa" / "ori_pqal.json", json.dumps({"7": row, "8": row | {"final_decision": "maybe"}}))
    write(tmp_path / "pubmed_qa" / "test_ground_truth.json", '{"8": "maybe"}')
    assert english_questions.pubmed_qa(tmp_path) == {
        "test": [{"question": "Does it help?", "context": "We asked. It did.", "label": 2}],
        "others": [{"question": "Does it help?", "context": "We asked. It did.", "label": 0}]}


def test_mmlu_puts_the_subject_s_examples_before_every_question(tmp_path):
    write(tmp_path / "dev" / "us_birds_dev.csv", '" What flies?",Owl,Stone,Tree,House,A\n')
    write(tmp_path / "test" / "us_birds_test.csv", '"What swims,\nand flies?",Owl,Duck,"a, b",House,B\n')
    (row,) = english_questions.subject_rows(tmp_path, "us_birds")
    assert (row["subject"], row["question"]) == ("US birds", "What swims,\nand flies?")
    assert (row["C"], row["label"]) == ("a, b", 1)
    assert [example["question"] for example in row["examples"]] == ["What flies?"]
    assert [len(subjects.split()) for subjects in english_questions.GROUPS.values()] == [18, 12, 13, 14]


# Language


def test_lambada_s_last_word_is_the_target(tmp_path):
    write_lines(tmp_path / "lambada" / "lambada_test.jsonl", [{"text": 'One.\n\n"Two, three'}, {"text": "a b\nc"}])
    assert english_texts.lambada(tmp_path)["test"] == [
        {"text": 'One.\n\n"Two,', "words": ["three"]}, {"text": "a b", "words": ["c"]}]


def test_the_pile_s_rows_keep_text_and_subset(tmp_path):
    write_lines(tmp_path / "pile" / "test.jsonl",
                [{"text": "print(1)\n", "meta": {"pile_set_name": "Github", "stars": 3}}])
    prepare(RECIPES["pile"], tmp_path, tmp_path / "data")
    assert lines_of(tmp_path / "data" / "pile" / "rows" / "test.jsonl") == [
        {"text_pretokenized": "print(1)\n", "meta": {"pile_set_name": "Github"}}]
    write_lines(tmp_path / "pile" / "test.jsonl", [{"text": "print(1)\n"}])
    with pytest.raises(UserError, match="test.jsonl: row 1: expected text and meta.pile_set_name"):
        english_texts.pile(tmp_path)


# Bias and hate


def test_crows_pairs_are_two_rows_each(tmp_path):
    write(tmp_path / "crows-pairs" / "crows_pairs_anonymized.csv",
          ",sent_more,sent_less,stereo_antistereo,bias_type\n0,Old cats are slow.,Young cats are slow. ,stereo,age\n")
    prepare(RECIPES["crows-pairs"], tmp_path, tmp_path / "data")
    shared = {"inputs_pretokenized": "", "pair_ID": 0, "bias_type": "age", "stereo_antistereo": "stereo"}
    assert lines_of(tmp_path / "data" / "crows-pairs" / "plain" / "test.jsonl") == [
        shared | {"choices_pretokenized": ["Old cats are slow."], "sent_ID": 1},
        shared | {"choices_pretokenized": ["Young cats are slow."], "sent_ID": 2}]


def test_stereoset_s_choices_are_in_the_order_of_their_ids(tmp_path):
    sentences = {"stereotype": {"sentence": "Cats are proud.", "id": "b"},
                 "anti-stereotype": {"sentence": "Cats are  humble.", "id": "c"},
                 "unrelated": {"sentence": "Cats are Tuesday.", "id": "a"}}
    row = {"id": "7", "target": "cat", "bias_type": "race", "context": "Cats are BLANK.", "data": sentences}
    for name in ("gender_test", "race_test", "religion_test", "dev"):
        write(tmp_path / "stereoset" / f"{name}.json", json.dumps([row]))
    found = english_texts.stereoset(tmp_path)
    assert [len(found["dev"]), len(found["test_sample"])] == [3, 1]
    assert found["dev"][0] == {"context": "", "choices": ["Cats are Tuesday.", "Cats are proud.", "Cats are humble."],
                               "goal_label": ["unrelated", "stereotype", "anti-stereotype"],
                               "bias_type": "race", "target": "cat", "ID": "7"}


def test_stereoset_s_own_file(tmp_path):
    kinds = ("unrelated", "stereotype", "anti-stereotype")
    rows = [{"id": "7", "target": "cat", "bias_type": "race", "context": "I met  cats.", "sentences": [
        {"sentence": f"They were {kind}.", "id": str(place), "gold_label": kind} for place, kind in enumerate(kinds)]}]
    write(tmp_path / "stereoset" / "dev.json", json.dumps({"data": {"intrasentence": rows, "intersentence": rows}}))
    found = english_texts.stereoset(tmp_path)
    assert [found[kind][0]["context"] for kind in ("intrasentence", "intersentence")] == ["", "I met cats."]
    assert found["intersentence"][0]["goal_label"] == list(kinds)


def test_ethos_goes_by_at_least_half_of_the_annotators(tmp_path):
    write(tmp_path / "ethos" / "Ethos_Dataset_Binary.csv", 'comment;isHate\n"a; b";0.5\nc;0.49\n')
    write(tmp_path / "ethos" / "Ethos_Dataset_Multi_Label.csv",
          "comment;gender;race\na;1;0\nb;0;0.7\nc;0.5;0.5\nd;0.2;0\n")
    assert [row["label"] for row in english_texts.ethos_binary(tmp_path)["test"]] == [1, 0]
    assert [row["label"] for row in english_texts.ethos_multi(tmp_path)["test"]] == [0, 1, 2, 3]
    write(tmp_path / "ethos" / "Ethos_Dataset_Binary.csv", "comment;isHate\na;often\n")
    with pytest.raises(UserError, match="row 1: isHate: expected a share from 0 to 1, found 'often'"):
        english_texts.ethos_binary(tmp_path)


def test_logical_deduction_s_options_are_the_choices(tmp_path):
    example = {"input": "Two birds. The owl is left.\nOptions:\n(A) The owl is right\n(B) The owl is left ",
               "target": "(B)"}
    for number in ("three", "five", "seven"):
        write(tmp_path / "big-bench-lite-partial" / f"logical_deduction_{number}_objects.json",
              json.dumps({"examples": [example]}))
    assert english_questions.logical_deduction(tmp_path)["three_objects"] == [
        {"paragraph": "Two birds. The owl is left.", "choices": ["The owl is right", "The owl is left"], "label": 1}]


# The real data


@pytest.mark.skipif(not DATASETS.is_dir(), reason=f"no raw data sets in {DATASETS}")
@pytest.mark.parametrize("name", sorted(set(RECIPES) - WITHOUT_DATA))
def test_every_row_of_the_real_data_is_prepared(name, tmp_path):
    accounts = prepare(RECIPES[name], DATASETS, tmp_path)
    found = {account.split: account.read for account in accounts}
    assert {split: found[split] for split in COUNTS[name]} == COUNTS[name]
    assert name == "MMLU" or found.keys() == COUNTS[name].keys()
    assert name != "MMLU" or (len(found), sum(found.values())) == (57, 14042)
    for path in (tmp_path / name).rglob("*.jsonl"):
        for row in lines_of(path):
            choices, targets = row.get("choices_pretokenized", []), row.get("targets_pretokenized", [])
            for text in (row["inputs_pretokenized"], *choices, *targets):
                assert text == text.strip()
            assert all((*choices, *targets))
            if "label" in row:
                assert 0 <= row["label"] < len(choices)


@pytest.mark.skipif(not (DATASETS.is_dir() and GOLDEN.is_dir()), reason=f"no golden rows in {GOLDEN}")
def test_lambada_has_the_original_s_prompts(tmp_path):
    prepare(RECIPES["lambada/lambada"], DATASETS, tmp_path)
    golden = lines_of(GOLDEN / "lambada" / "lambada" / "test.jsonl")
    ours = lines_of(tmp_path / "lambada" / "lambada" / "plain" / "test.jsonl")[:len(golden)]
    assert [row["inputs_pretokenized"] for row in ours] == [row["inputs_pretokenized"] for row in golden]


@pytest.mark.skipif(not (DATASETS.is_dir() and GOLDEN.is_dir()), reason=f"no golden text in {GOLDEN}")
def test_wikitext_2_is_the_original_s_text(tmp_path):
    prepare(RECIPES["wikitext-2"], DATASETS, tmp_path)
    golden = (GOLDEN / "wikitext-2" / "wiki.test.tokens").read_bytes()
    ours = (tmp_path / "wikitext-2" / "wiki.test.tokens").read_bytes()
    assert golden and ours.startswith(golden)


@pytest.mark.parametrize("task, path, text", [
    ("bloom/math_qa", "math_qa/test.json", '"x"'), ("bloom/pubmed_qa", "pubmed_qa/ori_pqal.json", "[1]"),
    ("bigbench/formal_fallacies", "big-bench-lite-partial/formal_fallacies.json", '{"examples": [{"input": 3}]}')])
def test_json_of_something_else(tmp_path, task, path, text):
    for file in (tmp_path / path, tmp_path / "pubmed_qa" / "test_ground_truth.json"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    with pytest.raises(UserError, match=f"^{task}: .* those of https://.* [(](Type|Attribute)Error: "):
        prepare(RECIPES[task], tmp_path, tmp_path / "data")
