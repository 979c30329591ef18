"""What fuzzing found (test_fuzz_*.py), each as its smallest input: once a traceback or a hang, now one line."""

import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from commands.evaluate import output_folder, parse
from evaluation.discovery import find_task_files
from evaluation.names import import_dotted
from evaluation.task_file import load_task
from glm.checkpoint import find_shards
from glm.config import ModelConfig
from glm.shard import read_shard, save_checkpoint
from glm.tokenizers.icetk import IcetkTokenizer
from runtime.errors import UserError
from runtime.hosts import read_hostfile
from tests.golden_data import TOKENIZER
from tests.tiny_checkpoints import TINY, tiny_state

OTHER = "name: a\ntype: other\npath: data\nmodule: evaluation.tasks.GenerationTask\noptions:\n  "
MERGES = "a0: &a0 {" + ", ".join(f"k{number}: 1" for number in range(200)) + "}\n  " + "".join(
    f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 9)}]}}\n  " for level in range(1, 12)
)
LISTS = "a0: &a0 [x]\n  " + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n  " for level in range(1, 12)
)


@pytest.mark.parametrize(
    "text, message",
    [
        (OTHER + MERGES, "`<<` brings more than 10000 keys"),
        (OTHER + LISTS, "options: holds more than 10000 values"),
        (OTHER + "a: &a [*a]", "*a names nothing that stands before it"),
        (OTHER + "a: 2001-01-01", "task.yaml:6:6: '2001-01-01' means one thing in YAML 1.1 and another in 1.2"),
        (OTHER + "a: .inf", "options: inf is no number below 2^63"),
        (OTHER + "1: b", "task.yaml:6:3: key 1: must be text"),
        ("a: " + "x" * 1_000_000, "is larger than 1000000 bytes"),
        (
            "name: a\ntype: gen\npath: a\nlength_penalty: 600",
            "length_penalty: must be a number, such as 1.0, is 600 (from -20",
        ),
        ("name: a\ntype: gen\npath: a\nno_repeat_ngram_size: 1000000000", "must be from 0 to 65536, is 1000000000"),
    ],
)
def test_task_files(tmp_path, text, message):
    path = tmp_path / "task.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_task(path, tmp_path)
    assert message in str(caught.value)


def test_a_module_that_ends_the_program_while_it_is_imported(tmp_path):
    (tmp_path / "ends.py").write_text("raise SystemExit(0)\n", encoding="utf-8")
    with pytest.raises(UserError, match="importing .* failed: SystemExit: 0"):
        import_dotted("ends.Task", tmp_path)


def test_a_dotted_path_of_many_parts(tmp_path):
    with pytest.raises(UserError, match="a.a"):
        import_dotted("a." * 50_000 + "Task", tmp_path)


def test_a_number_of_slots_that_is_no_number_of_devices(tmp_path):
    path = tmp_path / "hostfile"
    path.write_text("worker-1 slots=" + "9" * 5000, encoding="utf-8")
    with pytest.raises(UserError, match="hostfile:1: .* is not a host"):
        read_hostfile(path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("[" * 100_000, "not valid JSON"),
        ("1" * 5000, "not valid JSON"),
        (
            json.dumps(vars(TINY) | {"num_layers": 10**9}),
            "num_layers is 1000000000; it must be at least 1 and at most 10000",
        ),
        (json.dumps(vars(TINY) | {"layernorm_epsilon": float("nan")}), "layernorm_epsilon is nan"),
        (json.dumps(vars(TINY) | {"num_image_tokens": -1}), "num_image_tokens is -1"),
    ],
)
def test_model_config(tmp_path, text, message):
    path = tmp_path / "model_config.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        ModelConfig.from_file(path)
    assert message in str(caught.value)


def test_an_index_whose_name_is_too_long(tmp_path):
    (tmp_path / "latest").write_text("a" * 300, encoding="utf-8")
    with pytest.raises(UserError, match="there is no such folder"):
        find_shards(tmp_path)


def test_a_shard_under_another_spelling_of_its_number_is_none(tmp_path):
    save_checkpoint(tmp_path, 1, tiny_state(), TINY)
    (tmp_path / "1" / "mp_rank_1_model_states.pt").write_bytes(b"")
    assert [path.name for path in find_shards(tmp_path)] == ["mp_rank_00_model_states.pt"]


def archive(path: Path, text: bytes, compression=zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", text)
        file.writestr("archive/version", b"3\n")
    return path


@pytest.mark.parametrize(
    "text, compression, message",
    [
        (b"N" * 10**6, zipfile.ZIP_DEFLATED, "is a compressed archive"),
        (b"G", zipfile.ZIP_STORED, "is truncated or damaged"),  # half a number
    ],
)
def test_archives_that_torch_did_not_write(tmp_path, text, compression, message):
    with pytest.raises(UserError, match=message):
        read_shard(archive(tmp_path / "a.pt", text, compression))


@pytest.mark.parametrize("levels, message", [(2, "more than tensors .a key that is neither"), (60, "damaged")])
def test_a_few_bytes_that_stand_for_an_endless_key(tmp_path, levels, message):
    key = (1,)
    for _ in range(levels):
        key = (key, key)
    text = b"\x80\x02}X\x06\0\0\0module}" + pickle.dumps(key, protocol=2)[2:-1] + b"K\x01ss."
    with pytest.raises(UserError, match=message):
        read_shard(archive(tmp_path / "a.pt", text))


@pytest.mark.parametrize(
    "module, message",
    [
        ({"a": torch.ones(2, 2).to_sparse()}, "holds more than tensors .a call of torch._utils._rebuild_sparse_tensor"),
        ({"a": torch.ones(2, 2, device="meta")}, "holds more than tensors .a call of torch._utils._rebuild_meta"),
        ({"a": torch.ones(2, dtype=torch.complex64).conj()}, "a is no dense tensor of numbers"),
        ({1: torch.ones(2)}, "a tensor's name is no text but a key of the type int"),
    ],
)
def test_tensors_of_other_kinds(tmp_path, module, message):
    torch.save({"module": module}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=message):
        read_shard(tmp_path / "a.pt")


def test_a_vocabulary_with_a_piece_that_is_no_text(tmp_path):
    path = tmp_path / "ice_text.model"
    data = (TOKENIZER / "ice_text.model").read_bytes()
    path.write_bytes(data.replace("好".encode(), b"\xe5\xa5\x01"))
    with pytest.raises(UserError, match="is not icetk's vocabulary"):
        IcetkTokenizer(path)


@pytest.mark.parametrize("name", ["loop", "a" * 300, "a/" * 3000])
def test_names_that_the_system_refuses_are_no_files(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    with pytest.raises(UserError, match="there is no such file or folder"):
        find_task_files([name])
    arguments = parse(["--load", name, "tasks"])
    assert output_folder(arguments).parts[0] == "outputs"
