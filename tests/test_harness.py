"""GLM in lm-evaluation-harness itself: the registry, its own task files, and the road over our server."""

import json
import os
import shutil
import sys

import pytest

from commands import lm_eval as command
from evaluation import harness
from evaluation.harness import HarnessOptions, chat_prompt
from glm.config import ModelConfig
from runtime.errors import UserError
from tests.faults import ROOT, SECONDS, launched
from tests.golden_data import SHAPE, TOKENIZER, split_state, whole_state, write_checkpoint
from tests.test_harness_answers import SMALL

ROWS = [{"question": "The sky is", "choices": ["blue", "a large green dog"], "answer": 0, "text": "It was the best."},
        {"question": "今天天气", "choices": ["很好", "不"], "answer": 1, "text": "你好，世界。"}]
COMMON = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
"""
TASKS = {
    "own_choices": """
task: own_choices
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "own_texts": """
task: own_texts
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]
""",
    "own_answers": """
task: own_answers
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["."], max_gen_toks: 5}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
}


@pytest.fixture(scope="module")
def lm_eval():
    return pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")


@pytest.fixture
def tasks(lm_eval, tmp_path, monkeypatch):
    """A folder with task files in the harness's format, and their rows."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(text + COMMON.format(rows=rows), encoding="utf-8")
    return folder


def evaluated(lm_eval, model, model_args, names, folder, **options):
    """The harness's results -> its figures by task and metric, and the answers of every row."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = lm_eval.simple_evaluate(model=model, model_args=model_args, tasks=names, task_manager=manager,
                                    bootstrap_iters=0, **options)
    figures = {name: {key: value for key, value in found["results"][name].items() if isinstance(value, float)}
               for name in names}
    return figures, {name: [row["resps"] for row in found["samples"][name]] for name in names}


def test_it_runs_the_harness_s_own_tasks(lm_eval, tasks):
    harness.register()
    harness.register()  # twice is once
    figures, answers = evaluated(lm_eval, "glm", f"pretrained={SMALL}", list(TASKS), tasks, batch_size="auto")
    ours = harness.load(HarnessOptions(str(SMALL)))
    pairs = [(row["question"], f" {choice}") for row in ROWS for choice in row["choices"]]
    likely = [choice.log_prob for choice in ours.log_likelihoods(pairs)]
    right = [max((0, 1), key=likely[2 * number:2 * number + 2].__getitem__) == row["answer"]
             for number, row in enumerate(ROWS)]
    assert figures["own_choices"]["acc,none"] == sum(right) / 2
    assert [value for row in answers["own_choices"] for ((value, _),) in row] == pytest.approx(likely, abs=1e-4)
    texts = [row["text"] for row in ROWS]
    bits = -sum(ours.rolling(texts)) / sum(len(text.encode()) for text in texts) / 0.6931471805599453
    assert figures["own_texts"]["bits_per_byte,none"] == pytest.approx(bits)
    assert answers["own_answers"] == [[[text]] for text in ours.generate(
        [(row["question"], {"until": ["."], "max_gen_toks": 5}) for row in ROWS])]


def test_the_other_models_stay(lm_eval):
    from lm_eval.api.registry import get_model

    harness.register()
    assert get_model("local-completions") and get_model("dummy") and get_model("glm").__name__ == "HarnessModel"


@pytest.mark.parametrize("make", ["create_from_arg_obj", "create_from_arg_string"])
def test_model_args_win_over_the_harness_s_own_flags(lm_eval, make):
    """Its command line has a device and a batch size whether they were said or not."""
    from lm_eval.api.registry import get_model

    harness.register()
    said = {"pretrained": str(SMALL), "device": "cpu", "batch_size": 3}
    said = said if make.endswith("obj") else ",".join(f"{name}={value}" for name, value in said.items())
    model = getattr(get_model("glm"), make)(said, {"device": "cuda:7", "batch_size": 1, "max_batch_size": None})
    assert model.answers.batch_size == 3 and next(model.answers.model.parameters()).device.type == "cpu"


def test_over_the_server_it_is_a_causal_model(lm_eval, tasks):
    pytest.importorskip("aiohttp", reason="lm-evaluation-harness is installed without what local-completions needs")
    from tests.serving_helper import running

    harness.register()
    names = ["own_choices", "own_texts"]
    figures, answers = evaluated(lm_eval, "glm", f"pretrained={SMALL},unidirectional=True", names, tasks)
    with running() as server:
        remote = f"model=glm-small,base_url={server.url}/v1/completions,tokenizer_backend=remote,max_length=510"
        their_figures, theirs = evaluated(lm_eval, "local-completions", remote, names, tasks)
    for name in names:
        assert their_figures[name] == pytest.approx(figures[name], abs=1e-3)
    for row, other in zip(answers["own_choices"], theirs["own_choices"], strict=True):
        for ((value, is_greedy),), ((their_value, is_their_greedy),) in zip(row, other, strict=True):
            assert their_value == pytest.approx(value, abs=1e-3) and is_their_greedy == is_greedy


@pytest.fixture
def few_tasks(lm_eval, monkeypatch):
    """The command line knows the tasks of --include_path alone: reading all others takes half a minute."""
    from lm_eval.tasks import TaskManager

    make = TaskManager.__init__
    monkeypatch.setattr(TaskManager, "__init__", lambda *words, **options: make(
        *words, **options | {"include_defaults": False}))


def test_the_command_hands_all_arguments_on(tasks, few_tasks, tmp_path, capsys):
    argv = ["--model", "glm", "--model_args", f"pretrained={SMALL},dtype=float32", "--tasks", "own_choices",
            "--include_path", str(tasks), "--output_path", str(tmp_path / "out")]
    before = sys.argv
    assert command.main(argv) == 0 and sys.argv is before
    assert "own_choices" in capsys.readouterr().out
    (results,) = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(results.read_text(encoding="utf-8"))["config"]["model"] == "glm"


@pytest.mark.slow
def test_two_ranks_give_the_figures_of_one_and_one_speaks(tasks, tmp_path):
    """Of a checkpoint in two parts, over gloo."""
    folder = write_checkpoint(tmp_path / "checkpoint", split_state(whole_state(), 2))
    ModelConfig.from_values(SHAPE).save(folder / "model_config.json")
    shutil.copy(TOKENIZER / "ice_text.model", folder)
    environment = {"HF_DATASETS_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1",
                   "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}

    def figures(ranks):
        out = tmp_path / f"out{ranks}"
        argv = ["lm-eval", "--model", "glm", "--model_args", f"pretrained={folder},device=cpu", "--tasks",
                ",".join(TASKS), "--include_path", str(tasks), "--output_path", str(out), "--batch_size", "auto"]
        process = launched(ranks, "glm", argv, **environment)
        said, errors = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, errors
        assert said.count("bits_per_byte") == 1
        (results,) = out.rglob("results_*.json")
        return json.loads(results.read_text(encoding="utf-8"))["results"]

    one, two = figures(1), figures(2)
    for task in TASKS:
        for name, value in one[task].items():
            assert two[task][name] == (pytest.approx(value, abs=1e-4) if isinstance(value, float) else value)


def test_a_mistake_is_one_line(tasks, few_tasks, capsys):
    def said(model_args, *more):
        code = command.main(["--model", "glm", "--model_args", model_args, "--tasks", "own_choices", "--include_path",
                             str(tasks), *more])
        lines = capsys.readouterr().err.splitlines()
        return code, next(line for line in lines if line.startswith("error: "))

    assert said("pretrained=nowhere") == (
        2, "error: pretrained=nowhere: no such folder; name the one that holds the checkpoint")
    assert said(f"pretrained={SMALL}", "--apply_chat_template")[1].startswith(
        "error: --apply_chat_template: a model of the family glm-130b has no chat format; leave it out")


def test_without_the_harness_one_line_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert command.main(["--help"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: lm-evaluation-harness is not installed for this Python (")
    assert line.endswith(f'{sys.executable} -m pip install "lm_eval[api]>=0.4.9,<0.5"')


@pytest.mark.parametrize(("values", "says"), [
    ({}, "model_args: pretrained is missing"),
    ({"pretraind": "x"}, "unknown argument 'pretraind' .did you mean 'pretrained'"),
    ({"pretrained": "x", "unidirectional": "yes"}, "unidirectional is 'yes'; allowed: True, False"),
    ({"pretrained": "x", "max_length": 0}, "max_length is 0; it must be a whole number of at least 1"),
    ({"pretrained": "x", "batch_size": "many"}, "batch_size is 'many'; allowed: a whole number of at least 1, auto"),
])
def test_model_args_that_are_refused(values, says):
    with pytest.raises(UserError, match=says):
        HarnessOptions.of(values)


def test_batch_sizes():
    assert [HarnessOptions("x", batch_size=size).most_sequences for size in (1, "8", "auto", "auto:4")] == [
        1, 8, None, None]
    assert HarnessOptions("x", max_batch_size=3).most_sequences == 3


def test_chats():
    user, answer = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    assert chat_prompt([user, answer, user], "chatglm") == "[Round 0]\n问：q\n答：a\n[Round 1]\n问：q\n答："
    assert chat_prompt([user, answer], "chatglm2") == "[Round 1]\n\n问：q\n\n答：a"  # an answer that is begun
    with pytest.raises(UserError, match="gen_prefix 'a' cannot be given"):
        chat_prompt([user, answer], "chatglm")
    with pytest.raises(UserError, match="a model of the family glm-130b has no chat format"):
        chat_prompt([user], "glm-130b")


def test_the_extra_is_what_the_message_says():
    tomllib = pytest.importorskip("tomllib", reason="new in Python 3.11")
    project = tomllib.loads((SMALL.parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["optional-dependencies"]["lm-eval"] == [harness.REQUIREMENT]
