"""Task files: what is read, and what every mistake in one says."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.config import (
    CONFIGS,
    GenerationTaskConfig,
    LanguageModelTaskConfig,
    MultiChoiceTaskConfig,
    TaskConfig,
    TaskType,
)
from evaluation.names import find_metric, import_dotted
from evaluation.task_file import load_task
from runtime.errors import UserError

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden" / "evaluation"
MUL = "name: quiz\ntype: mul\npath: quiz\n"
GEN = "name: answers\ntype: gen\npath: answers\n"
LM = "name: text\ntype: lm\npath: text\n"


@pytest.fixture
def load(tmp_path):
    def load(text, data_path="data"):
        file = tmp_path / "task.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_task(file, data_path)

    return load


@pytest.fixture
def fault(load):
    """The message of a task file, without the folder's name."""

    def fault(text):
        with pytest.raises(UserError) as caught:
            load(text)
        assert "\n" not in str(caught.value)
        return re.sub(r"/\S*/", "", str(caught.value))

    return fault


# What is read


def test_defaults_of_multiple_choice(load):
    assert repr(load(MUL)) == (
        "MultiChoiceTaskConfig(name='quiz', type=<TaskType.MULTICHOICE: 'mul'>, path='data/quiz', module=None, "
        "metrics=['Accuracy'], use_task_mask=False, use_multitask_encoding=False, unidirectional=False, "
        "max_seq_length=2048, file_pattern='**/*.json*', micro_batch_size=1)")


def test_defaults_of_generation(load):
    config = load(GEN)
    assert isinstance(config, GenerationTaskConfig) and config.metrics == ["EM", "F1"]
    assert repr(config).endswith("sampling_strategy='BaseStrategy', num_beams=4, length_penalty=1.0, "
                                 "no_repeat_ngram_size=3, min_gen_length=0, max_gen_length=128)")


def test_defaults_of_language_modelling(load):
    config = load(LM)
    assert isinstance(config, LanguageModelTaskConfig)
    assert (config.metrics, config.generation_length) == (["PPL"], 256)


def test_configs_can_be_made_without_a_file():
    config = MultiChoiceTaskConfig(name="quiz", path="data/quiz")
    assert config.type is TaskType.MULTICHOICE and config.metrics == ["Accuracy"]


def test_keys_in_either_spelling(load):
    hyphens = load(GEN + "max-seq-length: 99\nmax-gen-length: 9\nfile-pattern: {dev: '*.jsonl'}\nmicro-batch-size: 3\n")
    underscores = load(GEN + "max_seq_length: 99\nmax_gen_length: 9\nfile_pattern: {dev: '*.jsonl'}\n"
                             "micro_batch_size: 3\n")
    assert hyphens == underscores
    assert hyphens.file_pattern == {"dev": "*.jsonl"}


def test_a_whole_number_is_a_length_penalty_too(load):
    assert repr(load(GEN + "length_penalty: 2").length_penalty) == "2.0"


def test_paths(load, tmp_path):
    assert load(MUL, "some/data").path == "some/data/quiz"
    assert load(MUL.replace("path: quiz", "path: ./rows")).path == str(tmp_path / "rows")  # beside the task file
    assert load(MUL).source == tmp_path / "task.yaml"


def test_settings_are_printed_as_the_original_prints_them():
    if not GOLDEN.is_dir():
        pytest.skip("the golden evaluation data is not beside the repository")
    files = sorted((GOLDEN / "tasks").glob("*.yaml"))
    assert files
    for file in files:
        report = (GOLDEN / "expected" / f"{file.stem}.report.txt").read_text(encoding="utf-8")
        assert report.split("\n")[2] == repr(load_task(file, "data"))


# Classes of one's own


def test_module_beside_the_task_file(load, tmp_path):
    (tmp_path / "own.py").write_text(
        "from evaluation.metrics import METRICS\n"
        "class Own:\n    default_metrics = ('Mine',)\n    extra_metrics = {'Mine': METRICS['Accuracy']}\n")
    config = load(MUL + "module: own.Own\noptions: {anything: [1, 2]}\n")
    assert config.metrics == ["Mine"] and config.module == "own.Own"
    assert config.options == {"anything": [1, 2]}
    assert load(MUL + "module: own.Own\nmetrics: [Accuracy]\n").metrics == ["Accuracy"]


def test_metric_by_dotted_path(load, tmp_path):
    (tmp_path / "length.py").write_text("def letters(item):\n    return len(item['prediction'])\nnumber = 3\n")
    assert load(GEN + "metrics: [EM, length.letters]\n").metrics == ["EM", "length.letters"]
    metric = find_metric("length.letters", tmp_path, {}, "gen", "here")
    assert metric.statistics({"prediction": "four"}) == (4, 1.0)


def test_a_module_runs_once_and_may_import_its_neighbours(tmp_path):
    (tmp_path / "neighbour_of_evaluation_test.py").write_text("value = []\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "main.py").write_text("from neighbour_of_evaluation_test import value\nvalue.append(1)\n")
    assert import_dotted("main.value", tmp_path) == [1]
    assert import_dotted("main.value", tmp_path) == [1]


@pytest.mark.parametrize("line, message", [
    ("module: nowhere.at.all.Task", "module: nowhere.at.all.Task: there is neither a file "
                                    "all.py nor a module nowhere.at.all"),
    ("module: Task", "module: 'Task' is no dotted path; write module.Name, such as tasks.lambada.task.LAMBADA"),
    ("module: ../up.Task", "module: '../up.Task' is no dotted path"),
    ("module: json.Decoder", "has no 'Decoder', did you mean 'decoder'?"),
    ("module: json.loads", "module: json.loads is no class; it must be a subclass of evaluation.tasks.Task"),
    ("metrics: [json.decoder]", "metrics: json.decoder must be an evaluation.metrics.Metric or a function"),
])
def test_faults_of_modules(fault, line, message):
    assert message in fault(MUL + line)


def test_a_module_whose_name_begins_with_its_folder_s(fault, tmp_path):
    """`tasks`, `tools` and others are packages of this toolkit, in which nothing of a user's is found."""
    (tmp_path / "foo.py").write_text("from tools.helper import nothing\n")
    (tmp_path / "helper.py").write_text("")
    assert fault(MUL + "module: tasks.foo.Foo").endswith(
        "neither a file foo.py nor a module tasks.foo; foo.py is there: write foo.Foo")
    assert fault(MUL + "metrics: [evaluation.mine.foo.f]").endswith("; foo.py is there: write foo.f")
    assert fault(MUL + "module: foo.Foo").endswith(
        "No module named 'tools.helper'; helper.py is there: import it as helper")


def test_a_module_that_fails(fault, tmp_path):
    (tmp_path / "broken.py").write_text("def (:\n")
    (tmp_path / "absent.py").write_text("import no_such_package\n")
    assert "broken.Task: importing broken.py failed: SyntaxError" in fault(MUL + "module: broken.Task")
    assert "failed: ModuleNotFoundError: No module named 'no_such_package'" in fault(MUL + "module: absent.Task")


# What every mistake says


@pytest.mark.parametrize("text, message", [
    (MUL + "metric: [Accuracy]", "task.yaml: unknown key 'metric', did you mean 'metrics'? (known: name, type, path"),
    (MUL + "zzz: 1", "unknown key 'zzz' (known: "),
    (MUL + "num_beams: 4", "num_beams is a key of gen tasks; this is a mul task"),
    (MUL + "generation-length: 4", "generation-length is a key of lm tasks; this is a mul task"),
    (MUL + "max-seq-length: 9\nmax_seq_length: 9", "max_seq_length stands there twice, in two spellings"),
    ("type: mul\npath: quiz", "name is missing; every task file has name, type, path"),
    ("name: quiz\ntype: mul", "path is missing"),
    ("name: quiz\npath: quiz", "type is missing; allowed: mul, gen, lm, other"),
    (MUL.replace("mul", "mull"), "type: 'mull' is none, did you mean 'mul'?; allowed: mul, gen, lm, other"),
    (MUL.replace("mul", "[mul]"), "type: a list is none; allowed"),
    (MUL.replace("mul", "multiple_choice"), "type: 'multiple_choice' is none, did you mean 'mul'?; allowed: mul, gen"),
    (MUL.replace("mul", "generate-until"), "type: 'generate-until' is none, did you mean 'gen'?; allowed"),
    (MUL.replace("type", "Type"), "type is missing (it stands there as 'Type'); allowed: mul, gen, lm, other"),
    (MUL + "Metrics: [EM]", "unknown key 'Metrics', did you mean 'metrics'?"),
    (MUL + "max_seq_length: 0512", "task.yaml:4:17: '0512' means one thing in YAML 1.1 and another in 1.2"),
    (MUL + "use_task_mask: yes", "task.yaml:4:16: 'yes' means one thing in YAML 1.1 and another in 1.2"),
    (MUL + "file_pattern: **/*.jsonl", "(text that begins with * needs quotes)"),
    ("task: arc\ndataset_path: ai2_arc\noutput_type: multiple_choice\ntest_split: test",
     "task.yaml: a task file of lm-evaluation-harness (task, dataset_path, output_type), which is not read; docs/"),
    (MUL.replace("mul", "other"), "module is missing; a task of type other is what its class makes of it"),
    (MUL.replace("quiz", "false", 1), "name: must be text, is false; quotes make it text"),
    (MUL.replace("quiz", "", 1), "name: must be text, is null"),
    (MUL.replace("quiz", "a/b", 1), "must not hold / or \\, begin with a dot"),
    (MUL.replace("quiz", "..", 1), "begin with a dot"),
    (MUL.replace("quiz", '"a\\nb"', 1), "must be one line of text"),
    (MUL.replace("quiz", '""', 1), "must be one line of text, is ''"),
    (MUL + "max_seq_length: 9.0", "max_seq_length: must be a whole number, is 9.0"),
    (MUL + "max_seq_length: true", "max_seq_length: must be a whole number, is true"),
    (MUL + "max_seq_length: '9'", "max_seq_length: must be a whole number, is '9'"),
    (MUL + "max_seq_length:", "max_seq_length: must be a whole number, is null"),
    (MUL + "max_seq_length: 3", "max_seq_length: must be at least 4"),
    (MUL + "micro-batch-size: 0", "micro-batch-size: must be from 1 to 2147483647, is 0"),
    (MUL + "use_task_mask: 1", "use_task_mask: must be true or false, is 1"),
    (MUL + "use_task_mask: 'yes'", "use_task_mask: must be true or false, is 'yes'"),
    (MUL + "unidirectional: true", "unidirectional: needs `use_task_mask: true`"),
    (MUL + "metrics: Accuracy", "metrics: must be a list such as [Accuracy], is 'Accuracy'"),
    (MUL + "metrics: []", "metrics: must name at least one, such as [Accuracy]"),
    (MUL + "metrics: [Acuracy]", "metrics: unknown metric 'Acuracy', did you mean 'Accuracy'? (known: Accuracy"),
    (MUL + "metrics: [Accuracy, Accuracy]", "metrics: Accuracy is listed twice"),
    (MUL + "metrics: [EM]", "EM is no metric of mul tasks (those are Accuracy, F1_mul, Precision, Recall, "
     "Accuracy_per_token, Accuracy_per_character, Accuracy_per_byte)"),
    (GEN + "metrics: [PPL]", "PPL is no metric of gen tasks (those are Accuracy, EM, "),
    (MUL + "options: {a: 1}", "options are read by the class that `module` names, and there is no module"),
    (MUL + "options: 3", "options: must be a mapping"),
    (MUL + "file_pattern: ../*.jsonl", "file_pattern: '../*.jsonl' leaves the task's data folder"),
    (MUL + "file_pattern: {dev: /*}", "file_pattern: dev: '/*' leaves the task's data folder"),
    (MUL + "file_pattern: {}", "file_pattern: names no group"),
    (MUL + "file_pattern: {2020: '*'}", "task.yaml:4:16: key 2020: must be text; quotes make it text"),
    (MUL + "file_pattern: [a, b]", "file_pattern: must be one glob, or `group: glob` lines, is a list"),
    (GEN + "num_beams: 0", "num_beams: must be from 1"),
    (GEN + "no_repeat_ngram_size: -1", "no_repeat_ngram_size: must be from 0"),
    (GEN + "length_penalty: .nan", "length_penalty: must be a number, such as 1.0, is nan"),
    (GEN + "length_penalty: '1e0'", "length_penalty: must be a number, such as 1.0, is '1e0'"),
    (GEN + "sampling_strategy: BeamSearch", "sampling_strategy: 'BeamSearch' is none, did you mean "
                                            "'BeamSearchStrategy'?; allowed: BaseStrategy, BeamSearchStrategy"),
    (GEN + "max_seq_length: 130", "max_gen_length: leaves no room for the text; must be at most max_seq_length - 3 "
                                  "(127), is 128"),
    (GEN + "min_gen_length: 200", "min_gen_length: must be at most max_gen_length (128), is 200"),
    (LM + "generation_length: 2048", "generation_length: must be less than max_seq_length (2048), is 2048"),
])
def test_wrong_keys_and_values(fault, text, message):
    assert message in fault(text)


@pytest.mark.parametrize("text, message", [
    ("", "task.yaml: the file is empty; it must hold `key: value` lines"),
    ("# nothing\n", "the file is empty"),
    ("- a\n- b", "must hold `key: value` lines, holds a list"),
    ("mul", "must hold `key: value` lines, holds 'mul'"),
    ("name: [a\ntype: mul", "task.yaml:2:5: not valid YAML: "),
    ("name: a\n\ttype: mul", "task.yaml:2:1: not valid YAML: found character '\\t'"),
    ("name: a\nname: b", "task.yaml:2:1: not valid YAML: the key 'name' stands in line 1 too"),
    ("file_pattern: {a: x, a: y}", "task.yaml:1:22: not valid YAML: the key 'a' stands in line 1 too"),
    ("name: !!python/object:os.system {}", "task.yaml:1:7: not valid YAML: the tag "),
    ('name: "\\UFFFFFFFF"', "not valid YAML: "),
    ("a: b\n---\nc: d", "task.yaml:2:1: a second document begins here"),
    ("name: a\x00b", "task.yaml:1:8: not valid YAML: character"),
    ("3: a", "key 3: must be text"),
    (b"name: \xff", "not valid UTF-8 at byte 7"),
])
def test_files_that_are_no_task_files(fault, text, message):
    assert message in fault(text)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="none.yaml: No such file or directory"):
        load_task(tmp_path / "none.yaml", "data")


# Whatever a file holds


def assert_task_or_fault(load, text):
    try:
        assert isinstance(load(text), TaskConfig)
    except UserError as error:
        assert all(fault and "\n" not in fault for fault in str(error).split("\nerror: "))


QUICK = settings(max_examples=150)
KEYS = sorted({field for kind in CONFIGS.values() for field in kind.__dataclass_fields__})
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["mul", "gen", "lm", "other", "EM", "**/*", "../x", "./", "json.loads", "a" * 300]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=5)


@QUICK
@given(text=st.text() | st.text(alphabet="a1:-[]{}&*!|>'\"#%@\n ,?."))
def test_no_text_gives_a_traceback(load, text):
    assert_task_or_fault(load, text.encode("utf-8", "surrogatepass"))


@QUICK
@given(kind=st.sampled_from(["mul", "gen", "lm", "other"]), more=st.dictionaries(st.sampled_from(KEYS), VALUES))
def test_no_values_give_a_traceback(load, kind, more):
    assert_task_or_fault(load, yaml.safe_dump({"name": "a", "type": kind, "path": "b"} | more, allow_unicode=True))


def test_endless_nesting_is_a_fault(fault):
    assert "not valid YAML" in fault("a: " + "[" * 5000)
