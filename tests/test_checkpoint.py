"""SAT's layout on disk: every fault has its one-line message, no file is ever run, a killed writer does no harm."""

import errno
import mmap
import os
import pickle
import re
import zipfile

import pytest
import torch

from glm.checkpoint import find_shards, iteration_folder, open_checkpoint, read_config, shard_name, wrong_degree
from glm.config import ModelConfig
from glm.shard import read_shard, save_checkpoint, save_shard
from glm.weights import bytes_of
from runtime.errors import UserError

CONFIG = ModelConfig(num_layers=1, hidden_size=8, num_attention_heads=2, inner_hidden_size=8, vocab_size=16,
                     max_sequence_length=8)
STATE = {"a": torch.arange(6, dtype=torch.float16).view(2, 3), "b": torch.ones(4)}


class MakesFolder:
    """A pickle that would run code: it makes a folder when it is loaded."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def folder(tmp_path):
    save_checkpoint(tmp_path / "model", 10, STATE, CONFIG)
    return tmp_path / "model"


@pytest.fixture
def shard(folder):
    return folder / "10" / shard_name(0)


def refuses(call, *arguments):
    """The message of the UserError, which is one line and names the file."""
    with pytest.raises(UserError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert "\n" not in message and str(arguments[0]) in message, message
    return message


def test_written_and_read_again(folder):
    found = read_shard(find_shards(folder)[0])
    assert list(found.tensors) == list(STATE)
    assert all(torch.equal(found.tensors[name], STATE[name]) for name in STATE)
    assert bytes_of(found, found.tensors) == 6 * 2 + 4 * 4
    assert ModelConfig.from_file(folder / "model_config.json") == CONFIG


# the folder and its index


def test_folder_that_is_not_there(tmp_path):
    assert "no checkpoint folder" in refuses(iteration_folder, tmp_path / "nowhere")


def test_absent_latest_says_how_to_make_it(folder):
    (folder / "latest").unlink()
    assert f"echo 10 > {folder / 'latest'}" in refuses(iteration_folder, folder)


def test_folder_that_is_none_or_holds_the_shards_themselves(folder, tmp_path):
    (tmp_path / "other").mkdir()
    message = refuses(iteration_folder, tmp_path / "other")
    assert "no readable file" in message and "echo" not in message and "take" not in message
    assert refuses(iteration_folder, folder / "10").endswith(f"; take {folder.resolve()}")


@pytest.mark.parametrize("target", ["49300", "", "..", ".", "../model/10", "/"])
def test_latest_that_points_nowhere(folder, target):
    (folder / "latest").write_text(target)
    assert "latest points to" in refuses(iteration_folder, folder)


def test_latest_that_is_no_text(folder):
    (folder / "latest").write_bytes("10".encode("utf-16"))
    assert "latest: is text in UTF-16" in refuses(iteration_folder, folder)
    (folder / "latest").write_bytes(b"10\xff")
    assert "latest:1: not valid UTF-8 at byte 3" in refuses(iteration_folder, folder)


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf10", b"10\r\n", b" 10 "])
def test_latest_from_an_editor(folder, content):
    (folder / "latest").write_bytes(content)
    assert iteration_folder(folder) == folder / "10"


@pytest.mark.parametrize("content", ["10/", "10\n20\n", "iteration 10", "./10"])
def test_latest_that_holds_more_than_a_name(folder, content):
    (folder / "latest").write_text(content, encoding="utf-8")
    assert refuses(iteration_folder, folder).endswith("and nothing else, such as 10")


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "pytorch_model.bin"])
def test_a_checkpoint_of_hugging_face(tmp_path, name):
    (tmp_path / name).write_text("{}", encoding="utf-8")
    for read in (read_config, find_shards):
        assert f"{tmp_path} is a checkpoint of Hugging Face's" in refuses(read, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    assert "config.json: model_type is 'bert'; served are glm, chatglm" in refuses(read_config, tmp_path)
    (tmp_path / name).unlink()
    assert "but has none of model.safetensors, " in refuses(open_checkpoint, tmp_path)


def test_a_shard_that_is_a_broken_link(folder, shard):
    shard.unlink()
    shard.symlink_to("elsewhere.pt")
    for read, path in ((find_shards, folder), (read_shard, shard)):
        assert f"missing shard {shard} (it is a link to elsewhere.pt, which is not there)" in refuses(read, path)


def test_a_shard_that_never_ends(shard):
    shard.unlink()
    os.mkfifo(shard)
    assert f"{shard} is no file" in refuses(find_shards, shard.parent.parent)
    assert f"cannot read {shard}: is a pipe, not a file" in refuses(read_shard, shard)


def test_folder_without_shards(folder, shard):
    shard.unlink()
    assert "no shards" in refuses(find_shards, folder)


def test_gap_between_the_shards_is_named(folder):
    for rank in (1, 3):
        save_shard(folder / "10" / shard_name(rank), STATE)
    assert "missing shard" in (message := refuses(find_shards, folder)) and shard_name(2) in message


def test_shards_are_in_the_order_of_their_ranks(folder):
    for rank in range(12):
        save_shard(folder / "10" / shard_name(rank), STATE)
    (folder / "10" / "notes.txt").touch()
    assert [path.name for path in find_shards(folder)] == [shard_name(rank) for rank in range(12)]


def test_wrong_number_of_shards_gives_the_command_that_mends_it():
    message = wrong_degree("/models/glm 130b", 8, 4, "it is quantised")
    assert message.startswith("/models/glm 130b is split for 8 tensor-parallel ranks, but 4 are running, and it is "
                              "quantised; start 8")
    assert message.endswith("python tools/convert_tp.py --input-folder '/models/glm 130b' "
                            "--output-folder '/models/glm 130b_tp4' --target-tp 4")


# one file


def test_missing_file(folder):
    assert "missing shard" in refuses(read_shard, folder / "10" / shard_name(7))


@pytest.mark.parametrize("content, what", [
    (b"", "no checkpoint: it was not written by torch.save"),
    (b"hello", "no checkpoint: it was not written by torch.save"),
    (b"\x00" * 1000, "no checkpoint: it was not written by torch.save"),
    (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of git-lfs, not the file itself; fetch that with"),
    (b"<!DOCTYPE html>\n<html>", "a web page, not the file itself"),
    (b"\x1f\x8b\x08", "compressed by gzip"),
    (b"\x40\x01\0\0\0\0\0\0" + b'{"weight": {}}', "truncated or damaged"),
])
def test_file_that_is_no_checkpoint(shard, content, what):
    shard.write_bytes(content)
    assert f"bytes) is {what}" in refuses(read_shard, shard)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_truncated_file(shard, kept):
    content = shard.read_bytes()
    shard.write_bytes(content[:int(len(content) * kept)])
    assert "truncated or damaged" in refuses(read_shard, shard)


def test_zip_file_of_something_else(shard):
    with zipfile.ZipFile(shard, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "truncated or damaged" in refuses(read_shard, shard)


def test_checkpoint_without_module(shard):
    torch.save({"model": STATE}, shard)
    assert re.search("the key 'module', found model$", refuses(read_shard, shard))
    torch.save([1, 2], shard)
    assert re.search("the key 'module', found list$", refuses(read_shard, shard))
    torch.save({}, shard)
    assert re.search("the key 'module', found no key$", refuses(read_shard, shard))


def test_value_that_is_no_tensor(shard):
    torch.save({"module": {"a": 3}}, shard)
    assert "a is no tensor but int" in refuses(read_shard, shard)


@pytest.mark.parametrize("old_format", [False, True])
def test_code_in_a_file_is_never_run(shard, tmp_path, old_format):
    trace = tmp_path / "code was run"
    torch.save({"module": {"a": MakesFolder(trace)}}, shard, _use_new_zipfile_serialization=not old_format)
    message = refuses(read_shard, shard)
    assert "holds more than tensors" in message and "mkdir" in message
    assert not trace.exists()
    torch.load(shard, weights_only=False)  # it would have
    assert trace.exists()


def test_code_in_a_plain_pickle_is_never_run(shard, tmp_path):
    trace = tmp_path / "code was run"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        shard.write_bytes(pickle.dumps({"module": MakesFolder(trace)}, protocol))
        assert "nothing in it was run" in refuses(read_shard, shard)
    assert not trace.exists()


def test_files_of_the_old_format_are_mapped_too(shard):
    torch.save({"module": STATE, "step": 3}, shard, _use_new_zipfile_serialization=False)
    found = read_shard(shard)
    assert all(torch.equal(found.tensors[name], STATE[name]) for name in STATE) and found.others == {"step": 3}


# writing


def test_a_view_is_written_without_what_it_was_cut_from(tmp_path):
    large = torch.zeros(1_000_000)
    save_shard(tmp_path / "view.pt", {"a": large[:10], "b": torch.nn.Parameter(large[10:20])})
    assert (tmp_path / "view.pt").stat().st_size < 10_000
    assert type(read_shard(tmp_path / "view.pt").tensors["b"]) is torch.Tensor


def test_a_write_that_fails_leaves_the_last_checkpoint_whole(folder, shard):
    class Unwritable(torch.Tensor):
        def __reduce_ex__(self, protocol):
            raise OSError("disk full")

    before = shard.read_bytes()
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(folder, 10, {"a": torch.ones(3).as_subclass(Unwritable)}, CONFIG)
    assert shard.read_bytes() == before
    assert {path.name for path in folder.rglob("*")} == {"10", "latest", shard_name(0), "model_config.json"}


def test_latest_is_written_after_all_ranks_have_written(tmp_path):
    def others_are_not_ready():
        assert (tmp_path / "20" / shard_name(0)).exists()
        assert not (tmp_path / "latest").exists()
        raise ConnectionError("rank 1 is gone")

    with pytest.raises(ConnectionError):
        save_checkpoint(tmp_path, 20, STATE, CONFIG, rank=0, barrier=others_are_not_ready)
    assert not (tmp_path / "latest").exists()
    save_checkpoint(tmp_path, 20, STATE, CONFIG, rank=1, barrier=lambda: None)
    assert not (tmp_path / "latest").exists()
    save_checkpoint(tmp_path, 20, STATE, CONFIG, rank=0, barrier=lambda: None)
    assert [path.name for path in find_shards(tmp_path)] == [shard_name(0), shard_name(1)]


def test_no_memory_is_not_taken_for_damage(tmp_path, monkeypatch):
    path = tmp_path / "mp_rank_00_model_states.pt"
    torch.save({"module": STATE}, path)

    def fails(*arguments, **keywords):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", fails)
    with pytest.raises(UserError, match="no memory to map it; a limit on this process's memory is too low"):
        read_shard(path)
