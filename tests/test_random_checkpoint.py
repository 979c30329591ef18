"""Checkpoints of random weights, as models were published: they load, whole and packed, in one file and in several."""

import pytest
import torch

import glm
from glm.config import ModelConfig
from tests.golden_data import family_folder
from tools import random_checkpoint

SIZES = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "max_sequence_length": 32}


@pytest.mark.parametrize("family, kind, bits, shard", [
    ("glm", "chinese", None, 1 << 30), ("glm", "chinese", None, 200_000), ("chatglm", "chatglm", None, 1 << 30),
    ("chatglm", "chatglm", 4, 100_000), ("chatglm", "chatglm", 8, 1 << 30),
])
def test_they_load(tmp_path, monkeypatch, family, kind, bits, shard):
    preset = {"glm": "glm-large-chinese", "chatglm": "chatglm-6b"}[family]
    config = ModelConfig.from_name(preset).override(**SIZES, inner_hidden_size=256, vocab_size=2048)
    monkeypatch.setattr(ModelConfig, "from_name", lambda _: config)
    monkeypatch.setattr(random_checkpoint, "SHARD_BYTES", shard)
    folder = tmp_path / "random"
    words = ["--model", preset, "--tokenizer", str(family_folder(kind, tmp_path)), str(folder)]
    assert random_checkpoint.main([*words, *(["--bits", str(bits)] if bits else [])]) == 0
    assert (len(list(folder.glob("*.bin"))) > 1) == (shard < 1 << 20)
    model, _ = glm.load(folder)
    assert model.config.family == family
    tokens = torch.tensor([[5, 6, 7]])
    positions = torch.stack((torch.arange(3), torch.zeros(3, dtype=torch.int64)))[None]
    assert model.logits(tokens, positions).isfinite().all()


def test_models_that_it_does_not_write(tmp_path, capsys):
    assert random_checkpoint.main(["--model", "glm-130b", str(tmp_path / "x")]) == 2
    assert "is of the family glm-130b; written are glm, chatglm" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
