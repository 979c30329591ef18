"""tools/convert_tp.py: every mistake has its one line on standard error, exit code 2, and leaves nothing behind."""

import json

import pytest
import torch

from commands.convert import main
from glm.checkpoint import find_shards, shard_name
from tests.faults import said
from tests.golden_data import split_state, write_checkpoint
from tests.tiny_checkpoints import TINY, tiny_checkpoint, tiny_state


def refused(capsys, source, output, *flags):
    assert main(["--input-folder", str(source), "--output-folder", str(output), *map(str, flags)]) == 2
    captured = capsys.readouterr()
    errors = said(captured.err)
    assert errors.startswith("error: ") and errors.count("\n") == 1 and not captured.out
    assert not output.exists()
    return errors


@pytest.mark.parametrize(("flags", "message"), [
    ((5,), "--target-tp 5: num_attention_heads 12 cannot be divided among 5 ranks; allowed: 1, 2, 3, 4, 6, 12"),
    ((0,), "--target-tp 0: must be at least 1"),
    ((1, "--requantize", "--quantization-bit-width", 4), "is not quantised; leave it away, --quantization-bit-width"),
    ((1, "--quantization-bit-width", 4, "--quantization-group-size", 32),
     "--quantization-group-size 32 does not divide the 48 columns of transformer.layers.0.attention.query_key_value."
     "weight on 1 rank; allowed there: no groups"),
    ((1, "--quantization_group_size", 32), "--quantization-bit-width 8 or 4 is needed"),
    ((1, "--model", "glm-130"), "unknown model preset 'glm-130' (did you mean 'glm-130b'?)"),
    ((1, "--model", "glm-130b"), "its tensors are of a model with num_layers 2, but num_layers 70 was said"),
    ((1, "--num-attention-heads", 5), "num_attention_heads 5 does not fit a hidden_size of 48"),
    ((1, "--num-attention-heads", 0), "num_attention_heads 0 was said"),
    ((1, "--max-sequence-length", 0), "max_sequence_length is 0; it must be at least 1"),
])  # fmt: skip
def test_mistakes(tmp_path, capsys, flags, message):
    tiny_checkpoint(tmp_path / "in", 2)
    assert message in refused(capsys, tmp_path / "in", tmp_path / "out", "--target-tp", *flags)


@pytest.mark.parametrize(("flags", "message"), [
    (("--quantization-bit-width", 4), "is quantised to 8 bits already, but 4 were asked for"),
    (("--quantization-group-size", 32), "is quantised already, so --quantization-group-size 32 has nothing to"),
])  # fmt: skip
def test_quantised_input_is_not_quantised_otherwise(tmp_path, capsys, flags, message):
    tiny_checkpoint(tmp_path / "in", 2, bits=8)
    assert message in refused(capsys, tmp_path / "in", tmp_path / "out", "--target-tp", 1, *flags)


def test_packed_pairs_are_not_cut(tmp_path, capsys):
    parts = split_state(tiny_state(), 1)
    for part in parts:
        for layer in range(TINY.num_layers):
            part[f"transformer.layers.{layer}.mlp.dense_4h_to_h.weight"] = torch.zeros(48, 12)
            for name in ("weight", "bias"):
                name = f"transformer.layers.{layer}.mlp.dense_h_to_4h.{name}"
                part[name] = part[name][:24]
    write_checkpoint(tmp_path / "in", parts)
    message = refused(capsys, tmp_path / "in", tmp_path / "out", "--target-tp", 4, "--num-attention-heads", 12,
                      "--quantization-bit-width", 4)
    assert "mlp.dense_4h_to_h.weight would have 3 columns on a rank, which would cut a byte" in message


def test_heads_that_nothing_says(tmp_path, capsys):
    tiny_checkpoint(tmp_path / "in", 2)
    (tmp_path / "in" / "model_config.json").unlink()
    message = refused(capsys, tmp_path / "in", tmp_path / "out", "--target-tp", 1)
    assert "num_attention_heads is not in the files" in message and "--num-attention-heads N" in message


def test_a_configuration_with_heads_that_are_no_number(tmp_path, capsys):
    file = tiny_checkpoint(tmp_path / "in", 2) / "model_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_attention_heads": "12"}))
    assert "num_attention_heads '12' was said (in model_config.json," in refused(
        capsys, tmp_path / "in", tmp_path / "out", "--target-tp", 1)


def test_folders_that_cannot_be_written(tmp_path, capsys):
    tiny_checkpoint(tmp_path / "in", 2)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nothing")
    assert f"--output-folder {tmp_path / 'file' / 'out'}: Not a directory; name a folder" in refused(
        capsys, tmp_path / "in", tmp_path / "file" / "out", "--target-tp", 1)
    assert f"--output-folder {tmp_path / 'link'} is a link to nothing, which does not exist; make" in refused(
        capsys, tmp_path / "in", tmp_path / "link", "--target-tp", 1)


def test_folders_that_are_no_checkpoint(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert "no such folder" in refused(capsys, tmp_path / "nowhere", tmp_path / "out", "--target-tp", 1)
    assert "no readable file" in refused(capsys, tmp_path / "empty", tmp_path / "out", "--target-tp", 1)


def test_shards_that_do_not_belong_together(tmp_path, capsys):
    tiny_checkpoint(tmp_path / "in", 4)
    paths = find_shards(tmp_path / "in")
    paths[3].unlink()
    message = refused(capsys, tmp_path / "in", tmp_path / "out", "--target-tp", 1)
    assert "missing shard" in message and "(4 belong together)" in message
    parts = split_state(tiny_state(), 4)
    for rank in (3, 4):
        torch.save({"module": parts[3]}, paths[0].with_name(shard_name(rank)))
    message = refused(capsys, tmp_path / "in", tmp_path / "out", "--target-tp", 1)
    assert f"{paths[0].parent} holds 5 shards, but 4 of their size are the model's vocab_size" in message
    for rank in (3, 4):
        paths[0].with_name(shard_name(rank)).unlink()
    parts = split_state(tiny_state(), 3)
    torch.save({"module": parts[2]}, paths[2])
    message = refused(capsys, tmp_path / "in", tmp_path / "out", "--target-tp", 1)
    assert "the shards are not of one checkpoint" in message


def test_flags_that_are_missing_or_unknown(capsys):
    for flags, message in ((["--input-folder", "a"], "--output-folder is needed"),
                           (["--target_tp", "2", "--input-foldr", "a"], "did you mean --input-folder?"),
                           (["--verify", "a", "--target-tp", "2"], "--target-tp has no place beside --verify")):
        with pytest.raises(SystemExit) as caught:
            main(flags)
        assert caught.value.code == 2 and message in capsys.readouterr().err
