"""tools/export_checkpoint.py leaves one iteration, and touches nothing that it has not written."""

import shutil
from pathlib import Path

import pytest
import torch

from glm.checkpoint import find_shards
from glm.shard import read_shard
from runtime.errors import UserError
from tools.export_checkpoint import export
from tuning.corpus_run import DATA, check_same_data

SMALL = Path(__file__).resolve().parent.parent / "checkpoints" / "glm-small"


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(SMALL / "model_config.json", folder)
    return folder


def exported(run, output, step):
    torch.save({"model": {"w": torch.full((2,), float(step))}, "progress": {"step": step}}, run / "state.pt")
    assert export(run, SMALL / "ice_text.model", output, "float32") == step


def test_the_next_export_takes_the_place_of_the_last(run, tmp_path):
    output = tmp_path / "out"
    for step in (20, 40):
        exported(run, output, step)
        (shard,) = find_shards(output)
        assert shard.parent.name == str(step) and read_shard(shard).tensors["w"][0] == step
    assert sorted(path.name for path in output.iterdir()) == ["40", "ice_text.model", "latest", "model_config.json"]


def test_folders_of_others_stay(run, tmp_path):
    output, photos = tmp_path / "out", tmp_path / "photos"
    (output / "2023").mkdir(parents=True)
    (output / "2023" / "diary.txt").write_text("precious")
    exported(run, output, 20)
    photos.mkdir()
    shutil.move(output / "20" / "mp_rank_00_model_states.pt", photos)
    shutil.rmtree(output / "20")
    (output / "20").symlink_to(photos)
    exported(run, output, 40)
    assert (output / "2023" / "diary.txt").read_text() == "precious"
    assert (photos / "mp_rank_00_model_states.pt").is_file()


def test_what_was_laid_beside_the_last_shard_stays(run, tmp_path):
    exported(run, tmp_path / "out", 20)
    (tmp_path / "out" / "20" / "notes.txt").write_text("precious")
    exported(run, tmp_path / "out", 40)
    assert [path.name for path in (tmp_path / "out" / "20").iterdir()] == ["notes.txt"]


def test_the_vocabulary_is_the_one_that_was_trained_with(run, tmp_path):
    other = tmp_path / "other.model"
    other.write_bytes(b"another vocabulary")
    begun = tmp_path / "begun"
    begun.mkdir()
    check_same_data(begun, tmp_path, SMALL / "ice_text.model", {})
    shutil.copy(begun / DATA, run)
    exported(run, tmp_path / "out", 20)
    with pytest.raises(UserError, match=r"--vocabulary \S+other.model is not the one that the run in "):
        export(run, other, tmp_path / "new", "float32")
    assert not (tmp_path / "new").exists()
