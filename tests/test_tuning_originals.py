"""Command lines of the originals, said in this program's words; the scripts and configurations that hold them."""

import shutil
from pathlib import Path

import pytest

from commands.tuning import main
from runtime.errors import UserError
from tests.cloned_scripts import Clone
from tuning.originals import translated

ROOT = Path(__file__).resolve().parent.parent
TASKS = sorted(path.name for path in ROOT.glob("config_tasks/task_*.sh"))
SEQ2SEQ = sorted(path.name for path in ROOT.glob("config_tasks/seq_*.sh"))


def flags_of(words):
    """{flag: its values}"""
    found = {}
    for word in words:
        if word.startswith("--"):
            found[word] = values = []
        else:
            values.append(word)
    return found


def test_a_line_of_the_glm_repository():
    line = ("--deepspeed --finetune --experiment-name large-copa --task COPA --data-dir data/COPA --save runs "
            "--num-workers 1 --fp16 --block-lm --cloze-eval --max-position-embeddings 512 --load-pretrained glm-large "
            "--batch-size 4 --gradient-accumulation-steps 8 --lr 1e-5 --device cpu")
    found = translated("finetune_glm.py", line.split())
    assert found.left_out == ["--deepspeed", "--finetune", "--num-workers", "--block-lm"]
    (command, *words), = found.commands
    assert command == "train"
    assert flags_of(words) == {
        "--task": ["copa"], "--data-dir": ["data/COPA"], "--save": ["runs/large-copa"], "--cloze-eval": [],
        "--max-sequence-length": ["512"], "--load": ["glm-large"], "--batch-size": ["32"],
        "--gradient-accumulation-steps": ["8"], "--lr": ["1e-5"], "--device": ["cpu"], "--dtype": ["float32"]}


def test_pretraining():
    line = "--block-lm --bert-prob 0.5 --split 949,50,1 --device cuda --fp16 --train-data file"
    (_, *words), = translated("pretrain_gpt2.py", line.split()).commands
    assert flags_of(words) == {"--bert-prob": ["0.5"], "--split": ["949,50,1"], "--device": ["cuda"],
                               "--train-data": ["file"], "--task": ["pretrain"], "--dtype": ["float16"]}


def test_a_line_of_ptuning():
    line = ("--do_train --do_predict --train_file a.json --test_file b.json --prompt_column content "
            "--response_column summary --overwrite_cache --model_name_or_path chatglm-6b --output_dir out "
            "--per_device_train_batch_size 1 --gradient_accumulation_steps 16 --max_steps 3000 --learning_rate 2e-2 "
            "--pre_seq_len 128 --quantization_bit 4 --device cpu")
    (train, *trained), (predict, *predicted) = translated("ptuning/main.py", line.split()).commands
    trained, predicted = flags_of(trained), flags_of(predicted)
    assert (train, predict) == ("train", "predict")
    assert trained["--task"] == ["chat"] and trained["--load"] == ["chatglm-6b"] and trained["--save"] == ["out"]
    assert trained["--lr"] == ["2e-2"] and trained["--lr-decay-ratio"] == ["0"] and trained["--batch-size"] == ["16"]
    assert trained["--quantization-bit-width"] == ["4"] and "--test-file" not in trained
    assert predicted["--output"] == ["out/generated_predictions.txt"] and predicted["--split"] == ["test"]
    assert "--train-iters" not in predicted and predicted["--pre-seq-len"] == ["128"]


def test_words_of_the_glm_repository_that_are_said_otherwise_here():
    line = "--no-validation --adapet --attention-scale 8 --few-superglue --device cpu"
    found = translated("finetune_glm.py", line.split())
    assert found.left_out == ["--attention-scale", "--few-superglue"]
    assert flags_of(found.commands[0][1:]) == {"--eval-epoch": ["0"], "--loss-func": ["adapet"], "--device": ["cpu"]}


def test_adafactor_gets_the_rate_alone():
    line = "--optimizer adafactor --lr 1e-3 --weight-decay 0.1 --adam-beta1 0.9 --device cpu"
    found = translated("finetune_glm.py", line.split())
    assert found.left_out == ["--adam-beta1", "--weight-decay"]
    assert flags_of(found.commands[0][1:]) == {"--optimizer": ["adafactor"], "--lr": ["1e-3"],
                                               "--weight-decay": ["0"], "--device": ["cpu"]}


def test_a_configuration_of_the_original_names_a_vocabulary_that_is_downloaded_there():
    line = "--tokenizer-type BertWordPieceTokenizer --tokenizer-model-type bert-large-uncased --text-key text"
    found = translated("finetune_glm.py", [*line.split(), "--device", "cpu"])
    assert found.left_out == ["--tokenizer-model-type", "--text-key"]
    assert flags_of(found.commands[0][1:])["--tokenizer-type"] == ["BertWordPieceTokenizer"]


@pytest.mark.parametrize(("line", "split"), [
    ("--task RTE --epochs 0 --load-pretrained m --save runs --experiment-name x --lr 1e-5 --cloze-eval", ["test"]),
    ("--task RTE --epochs 0 --eval-valid --load-pretrained m --cloze-eval --batch-size 8", ["dev"]),
    ("--task wikitext --valid-data f --load-pretrained m --save runs --checkpoint-activations --cloze-eval", None)])
def test_what_trains_nothing_is_evaluated(line, split):
    found = translated("finetune_glm.py", [*line.split(), "--device", "cpu"])
    (command, *words), = found.commands
    flags = flags_of(words)
    assert command == "evaluate" and flags.get("--split") == split and flags["--load"] == ["m"]
    assert not {"--save", "--epochs", "--lr", "--batch-size", "--checkpoint-activations"} & set(flags)
    assert "--cloze-eval" in flags and ("--save" in found.left_out) == ("--save" in line)


def test_the_last_validation_in_place_of_a_test_has_no_effect_on_a_training():
    found = translated("finetune_glm.py", ["--task", "rte", "--epochs", "3", "--eval-valid", "--device", "cpu"])
    assert found.commands[0][0] == "train" and found.left_out == ["--eval-valid"]


def test_tasks_of_pretraining_lie_where_the_original_looks_for_them():
    line = "--train-data f --data-dir glue --multi-task-data cola SQuAD --multi-task-ratio 0.05 --device cpu"
    flags = flags_of(translated("pretrain_glm.py", line.split()).commands[0][1:])
    assert flags["--multi-task-data"] == ["cola=glue/CoLA,squad-cloze=glue/SQuAD"] and "--data-dir" not in flags
    assert flags_of(translated("pretrain_glm.py", ["--multi-task-data", "rte=RTE", "--device", "cpu"]).commands[0][1:])[
        "--multi-task-data"] == ["rte=RTE"]


@pytest.mark.parametrize(("line", "message"), [
    ("--masked-lm", "--masked-lm trains a BERT, which has no block positions"),
    ("--sentinel-token", "no published checkpoint has"),
    ("--switch-linear", "--lr RATE --lr-decay-style linear"),
    ("--filter-english", "leave them out of the file"),
    ("--load-splits FILE", "--split 949,50,1"),
    ("--eval-seq-length 128", "--seq-length here"),
    ("--train-data pile cc-news", "one file is read here"),
    ("--multi-task-data superglue", "there are mnli, cola")])
def test_what_would_change_a_training_and_cannot_is_refused(line, message):
    with pytest.raises(UserError, match=message):
        translated("pretrain_glm.py", line.split())


@pytest.mark.parametrize("flag", ["--task", "--save", "--batch-size", "--device"])
def test_a_flag_without_its_value_is_one_line(flag, capsys):
    assert main(["original", "finetune_glm.py", "--gradient-accumulation-steps", "2", flag]) == 2
    assert flag in capsys.readouterr().err.splitlines()[-1]


def test_what_only_a_training_takes_is_not_said_to_predict():
    line = ("--do_train --do_eval --do_predict --validation_file v.json --test_file t.json --weight_decay 0.1 "
            "--adam_beta1 0.8 --max_grad_norm 2 --warmup 0.1 --per_device_eval_batch_size 3 --device cpu")
    (_, *train), (_, *predict) = translated("main.py", line.split()).commands
    assert flags_of(train)["--validation-file"] == ["v.json"] and flags_of(train)["--clip-grad"] == ["2"]
    assert set(flags_of(predict)) == {"--split", "--task", "--test-file", "--validation-file", "--eval-batch-size",
                                      "--device", "--output"}
    (_, *train), = translated("main.py", ["--do_train", "--validation_file", "v.json", "--device", "cpu"]).commands
    assert "--validation-file" not in flags_of(train)  # as there, without --do_eval


@pytest.mark.parametrize("words, message", [
    (["--lr", "1e-5", "--lr", "2e-5"], "--lr is said twice: 1e-5, and 2e-5"),
    (["COPA"], "'COPA' is no flag"),
    (["--num-workers"], "--num-workers takes a value"),
])
def test_mistakes(words, message):
    with pytest.raises(UserError, match=message):
        translated("finetune_glm.py", words)


def test_another_program(capsys):
    assert main(["original"]) == 2
    assert "which program's command line? There are finetune_glm.py" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"train_gpt.py: not a program of the originals; there are finetune_glm.py"):
        translated("train_gpt.py", [])
    with pytest.raises(UserError, match="neither --do_train nor --do_predict"):
        translated("main.py", ["--device", "cpu"])


def test_what_stands_behind_two_hyphens_replaces_what_is_before():
    line = "--lr 1e-5 --epochs 3 -- --lr 2e-5"
    (_, *words), = translated("finetune_glm.py", line.split()).commands
    assert flags_of(words)["--lr"] == ["2e-5"] and flags_of(words)["--epochs"] == ["3"]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    clone = Clone(tmp_path_factory.mktemp("originals"))
    for name in ("config", "config_tasks"):
        shutil.copytree(ROOT / name, clone.root / name)
    return clone


def said(clone, script, *configs, **environment):
    """The words that a script gives to `python -m tuning original`, its own and those of its configurations."""
    process = clone.run(script, *configs, STUB_COMPLETE="yes", CHECKPOINT_PATH="models", DATA_ROOT="/no/such",
                        **environment)
    assert process.returncode == 0, process.err
    words = [line.removeprefix("argument: ") for line in process.out.splitlines()]
    assert words[:3] == ["-m", "tuning", "original"]
    return words[2:]


def is_understood(words, capsys, message):
    """Every flag is known: what is wrong is that the files are not there."""
    assert main([*words, "--device", "cpu"] if "--device" not in words else words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error, error


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("script", ["ds_finetune_superglue.sh", "ds_finetune_superglue_prompt.sh"])
def test_superglue(clone, capsys, script, task):
    words = said(clone, script, "config_tasks/model_blocklm_2B.sh", f"config_tasks/{task}", "--epochs", "7")
    assert translated(words[1], words[2:]).commands[0][-2:] == ["--device", "cpu"]
    assert flags_of(translated(words[1], words[2:]).commands[0][1:])["--epochs"] == ["7"]
    is_understood(words, capsys, "models/glm-2b")


@pytest.mark.parametrize("task", SEQ2SEQ)
def test_seq2seq(clone, capsys, task):
    script = "finetune_blank.sh" if task == "seq_blank.sh" else "ds_finetune_seq2seq.sh"
    is_understood(said(clone, script, "config_tasks/model_blocklm_10B_chinese.sh", f"config_tasks/{task}"), capsys,
                  "models/glm-10b-chinese")


@pytest.mark.parametrize("config", sorted(path.name for path in ROOT.glob("config/*.sh")))
def test_pretraining_configurations(clone, capsys, config):
    is_understood(said(clone, "ds_pretrain_nvidia.sh", f"config/{config}"), capsys, "models")


def test_ptuning(clone, capsys):
    is_understood(said(clone, "ptuning_train.sh", MODEL_PATH="/no/chatglm"), capsys, "/no/chatglm")


def test_configurations_that_are_not_there(clone):
    process = clone.run("ds_finetune_superglue.sh", "config_tasks/model_x.sh", "config_tasks/task_copa.sh")
    assert process.returncode == 2 and "config_tasks/model_x.sh: no such file; there are: config_tasks/" in process.err
    assert clone.run("ds_finetune_seq2seq.sh").returncode == 2


@pytest.mark.parametrize(("script", "configs", "message"), [
    ("ds_finetune_superglue.sh", ("model_blocklm_2B.sh", "seq_blank.sh"), "seq_blank.sh sets no MAX_SEQ_LEN"),
    ("ds_finetune_superglue.sh", ("task_rte.sh", "task_rte.sh"), "MODEL_TYPE: unbound variable"),
    ("ds_finetune_seq2seq.sh", ("model_blocklm_2B.sh", "task_rte.sh"), "config_tasks/task_rte.sh sets no TASK_ARGS"),
    ("ds_pretrain_nvidia.sh", ("model_blocklm_2B.sh",), "config_tasks/model_blocklm_2B.sh sets no gpt_options")])
def test_configurations_of_another_kind(clone, script, configs, message):
    process = clone.run(script, *(f"config_tasks/{name}" for name in configs), STUB_COMPLETE="yes")
    assert process.returncode == 2 and message in process.err and process.err.count("\n") == 1


@pytest.mark.parametrize("name", ["NUM_GPUS_PER_WORKER", "MP_SIZE"])
def test_numbers_of_processes(clone, name):
    process = clone.run("ds_finetune_superglue.sh", "config_tasks/model_blocklm_2B.sh", "config_tasks/task_rte.sh",
                        **{name: "x"})
    assert process.returncode == 2 and process.err == f"error: {name}=x: must be a number of 1 or more\n"


def test_configurations_of_the_original_are_strings(clone, tmp_path):
    model = tmp_path / "model.sh"
    model.write_text('MODEL_TYPE="blocklm"\nMODEL_ARGS="--block-lm \\\n   --load-pretrained ${CHECKPOINT_PATH}/x"\n')
    words = said(clone, "ds_finetune_superglue.sh", str(model), "config_tasks/task_rte.sh")
    assert words[words.index("--load-pretrained") + 1] == "models/x"


def test_an_empty_list_is_a_list(clone, tmp_path):
    model = tmp_path / "model.sh"
    model.write_text("MODEL_TYPE=blocklm\nMODEL_ARGS=()\n")
    assert "--task" in said(clone, "ds_finetune_superglue.sh", str(model), "config_tasks/task_rte.sh")


def test_several_processes(clone):
    process = clone.run("ds_finetune_superglue.sh", "config_tasks/model_blocklm_2B.sh", "config_tasks/task_rte.sh",
                        STUB_COMPLETE="yes", NUM_GPUS_PER_WORKER="4")
    words = [line.removeprefix("argument: ") for line in process.out.splitlines()]
    assert words[:4] == [str(clone.root / "scripts" / "launch.py"), "4", "tuning", "original"]
