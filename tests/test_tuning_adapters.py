"""Adapters that are trained: LoRA on a plain and on a packed base, prefixes; what is saved is what was trained."""

import json
import shutil

import pytest
import torch

from glm.adapters.files import base_of, read_adapter
from tests.golden_finetune import KIT, refused, run, tokenizer_flags
from tests.test_tuning_evaluate import CHAT, chatglm, prefix_of  # noqa: F401 (a fixture)
from tests.tiny_training import log_of, tiny_glm, training_flags
from tuning.__main__ import main
from tuning.model import load
from tuning.options import CheckpointOptions, PartsOptions


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_glm(tmp_path_factory.mktemp("base"))


def trained(base, save, *flags):
    assert main(["train", *training_flags(base, "--save", save, *flags)]) == 0
    return save


def loss_with(base, save, capsys, *flags):
    """Of the rows that it was trained on, as evaluate has it with what was saved."""
    found, = run("evaluate", "--task", "copa", "--data-dir", KIT / "data/superglue/COPA", "--split", "train",
                 "--cloze-eval", "--seq-length", 64, *tokenizer_flags("bpe"), "--load", base, "--losses",
                 "cross_entropy", "--eval-batch-size", 100, *flags, *([] if save is None else ["--adapter", save]),
                 capsys=capsys)
    return found["losses"]["cross_entropy"][0]


@pytest.mark.parametrize("more", [(), ("--quantization-bit-width", "4"), ("--quantization-bit-width", "8")])
def test_lora_beside_a_frozen_base_plain_or_packed(base, more, tmp_path, capsys):
    save = trained(base, tmp_path / "lora", "--lora-rank", 4, "--lora-alpha", 8, "--lora-linears",
                   "query_key_value,dense_4h_to_h", "--lora-dropout", 0.1, *more)
    names = json.loads((save / "parameters.json").read_text())
    assert names["not_decayed"] == [] and all(".matrix_" in name for name in names["decayed"])
    assert {path.name for path in save.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert not list(save.glob("latest*")) and read_adapter(save, "glm").base == base_of(base)
    assert loss_with(base, save, capsys, *more) < loss_with(base, None, capsys, *more)
    found, = run("evaluate", "--task", "copa", "--data-dir", KIT / "data/superglue/COPA", "--cloze-eval",
                 *tokenizer_flags("bpe"), "--seq-length", 64, "--load", base, "--adapter", save, capsys=capsys)
    assert found["adapter"] == {"name": "lora", "sha256": read_adapter(save, "glm").sha256}
    assert trained(base, tmp_path / "again", "--lora-rank", 4, "--lora-alpha", 8, "--lora-linears",
                   "query_key_value,dense_4h_to_h", "--lora-dropout", 0.1, *more)
    assert log_of(save) == log_of(tmp_path / "again")


@pytest.mark.parametrize(("kind", "file"), [("sat", "lora.pt"), ("glm", "adapter.safetensors")])
def test_three_pairs_in_sat_s_names(base, kind, file, tmp_path, capsys):
    save = trained(base, tmp_path / "lora", "--lora-rank", 2, "--lora-alpha", 2, "--lora-linears",
                   "query_key_value,dense", "--lora-split-qkv", "--lora-format", kind)
    pairs = read_adapter(save / file, "glm", 2.0).lora.pairs
    assert len(pairs["transformer.layers.0.attention.query_key_value"]) == 3
    alpha = ["--lora-alpha", 2] if kind == "sat" else []
    assert loss_with(base, save, capsys, *alpha) < loss_with(base, None, capsys)


@pytest.mark.parametrize("more", [(), ("--prefix-projection",)])
def test_a_new_prefix(base, more, tmp_path, capsys):
    save = trained(base, tmp_path / "prefix", "--pre-seq-len", 4, *more)
    held = torch.load(save / "pytorch_model.bin", weights_only=True)
    assert all(name.startswith("transformer.prefix_encoder.") for name in held) and len(held) == (5 if more else 1)
    assert json.loads((save / "parameters.json").read_text())["decayed"] != []
    assert log_of(save)[-1]["loss"] > 0 and loss_with(base, save, capsys) != loss_with(base, None, capsys)


def test_an_adapter_is_trained_further_and_only_on_its_base(base, tmp_path, capsys):
    flags = ["--lora-rank", 2, "--lora-linears", "dense"]
    first = trained(base, tmp_path / "first", *flags)
    again = trained(base, tmp_path / "second", "--adapter", first)
    one, two = (read_adapter(path, "glm").lora for path in (first, again))
    assert one.pairs.keys() == two.pairs.keys() and one.scale == two.scale
    assert not torch.equal(one.pairs["transformer.layers.0.attention.dense"][0][0],
                           two.pairs["transformer.layers.0.attention.dense"][0][0])
    other = tiny_glm(tmp_path / "other", seed=1)
    capsys.readouterr()
    assert "trained on another base" in refused("train", *training_flags(other, "--save", tmp_path / "x", "--adapter",
                                                                         first), capsys=capsys)


def test_what_contradicts_itself(base, tmp_path, capsys):
    torch.save({"embedding.weight": torch.zeros(3, 128)}, tmp_path / "prefix.pt")
    for flags, message in ((["--lora-rank", 2, "--lora-split-qkv"], "add --lora-format sat or glm"),
                           (["--lora-rank", 2, "--lora-linears", "query"], "no linear query to adapt"),
                           (["--quantization-bit-width", 4], "a quantised model cannot learn"),
                           (["--lora-rank", 2, "--adapter", tmp_path / "prefix.pt"], "leave one away")):
        said = refused("train", *training_flags(base, "--save", tmp_path / message, *flags), capsys=capsys)
        assert message in said


def test_what_is_not_there_is_not_put_on(base):
    tuned = load(CheckpointOptions(load=base), PartsOptions())
    assert not tuned.is_adapted and tuned.frozen() == set(tuned.named())


@pytest.mark.parametrize("case", [case for case in CHAT["cases"] if "curve" in case], ids=lambda case: case["name"])
def test_chatglm_s_curves(case, chatglm, tmp_path, capsys):  # noqa: F811
    file, is_projected = prefix_of(case)
    curve, save = case["curve"], tmp_path / "save"
    (tmp_path / "batches.jsonl").write_text("".join(json.dumps({"rows": rows}) + "\n" for rows in curve["rows"]))
    prefix = ["--prefix-encoder", file, "--pre-seq-len", 5, *["--prefix-projection"] * is_projected]
    flags = ["train", "--task", "chat", "--tokenized", chatglm / "rows.jsonl", "--load", chatglm, *prefix, "--batches",
             tmp_path / "batches.jsonl", "--save", save, "--lr", curve["lr"], "--weight-decay", 0, "--warmup", 0,
             "--lr-decay-style", "linear", "--lr-decay-ratio", 0, "--train-iters", curve["steps"], "--clip-grad", 1,
             "--hidden-dropout", 0, "--attention-dropout", 0, "--output-dropout", 0]
    assert main(list(map(str, flags))) == 0, capsys.readouterr().err
    assert [line["loss"] for line in log_of(save)] == pytest.approx(curve["losses"], rel=1e-3)
    held = torch.load(save / "pytorch_model.bin", weights_only=True)
    assert {name: list(tensor.shape) for name, tensor in held.items()} == case["state_dict"]
    shutil.rmtree(save)
