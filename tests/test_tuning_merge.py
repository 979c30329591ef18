"""python -m tuning merge: what the adapted base computes, in any layout; and who is refused, with nothing written."""

import json
import shutil

import numpy
import pytest
import torch

from glm.adapters import lora
from glm.adapters.files import write_adapter, write_peft
from glm.checkpoint import open_checkpoint
from glm.linear import linears
from glm.loading import load_without_tokenizer
from glm.options import ModelOptions
from tests.golden_data import ITERATION, SHAPE, TP1, quantized_parts, split_state, whole_state, write_checkpoint
from tests.golden_family import checkpoint
from tests.golden_finetune import refused
from tests.test_adapters import CASES, EXPECTED, LORA, PREFIX, assert_golden, inputs
from tuning import api
from tuning.__main__ import main

FLAGS = [str(word) for name, value in SHAPE.items() for word in (f"--{name.replace('_', '-')}", value)]


def merged(load, save, *flags, capsys):
    assert main(["merge", "--load", str(load), "--save", str(save), *map(str, flags)]) == 0, capsys.readouterr().err
    said = capsys.readouterr()
    assert said.out == "" and "its logits differ from those of the adapted base by" in said.err
    return save


@pytest.mark.parametrize("layout", ["heads", "stacked"])
def test_a_merged_checkpoint_is_what_sat_merges(layout, tmp_path, capsys):
    save = merged(TP1, tmp_path / "out", "--adapter", LORA, "--lora-alpha", 8, "--lora-layout", layout, *FLAGS,
                  capsys=capsys)
    for case in CASES:
        assert_golden(api.logits(save, *inputs(case), options=SHAPE), f"lora{'_stacked' * (layout == 'stacked')}", case)


def test_every_rank_s_file_gets_its_part(tmp_path, capsys):
    write_checkpoint(tmp_path / "two", split_state(whole_state(), 2))
    one, two = (merged(load, tmp_path / f"out {number}", "--adapter", LORA, "--lora-alpha", 8, *FLAGS, capsys=capsys)
                for number, load in enumerate((TP1, tmp_path / "two")))
    assert open_checkpoint(two).parts == 2 and (two / "latest").read_text() == (tmp_path / "two/latest").read_text()
    whole = split_state(dict(torch.load(one / ITERATION / "mp_rank_00_model_states.pt")["module"]), 2)
    for rank, part in enumerate(whole):
        found = torch.load(next(two.glob(f"*/mp_rank_{rank:02d}_model_states.pt")), weights_only=True)["module"]
        for name, tensor in part.items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)
        dtypes = {name: tensor.dtype for name, tensor in found.items()}
        assert dtypes["transformer.layers.0.attention.dense.weight"] is torch.float32
        assert dtypes["transformer.layers.0.mlp.dense_h_to_4h.weight"] is torch.float16


@pytest.mark.parametrize(("family", "name"), [("glm", "megatron_chinese_MP2"), ("chatglm2", None), ("chatglm", None)])
def test_published_layouts_of_the_families(family, name, tmp_path, capsys):
    folders = sorted(path for path in checkpoint(family, "x").parent.glob(name or "hf_*") if path.is_dir())
    load, flags = folders[0], ["--num-attention-heads", 4] if name else []
    options = ModelOptions(path=load, device="cpu", dtype="float32", degree=1,
                           shape={"num_attention_heads": 4} if name else {})
    model = load_without_tokenizer(options)
    made = lora.fresh(model.config, 2, 4, ("query_key_value", "dense_4h_to_h"), 3)
    pairs = {each: [(first, torch.ones_like(second) * 0.1) for first, second in both]
             for each, both in made.pairs.items()}
    values = json.loads((load / "config.json").read_text()) if (load / "config.json").exists() else {}
    write_peft(tmp_path / "peft", model, values, lora.Lora(pairs, made.scale), None, "base")
    save = merged(load, tmp_path / "out", "--adapter", tmp_path / "peft", *flags, capsys=capsys)
    assert {path.name for path in save.iterdir()} == {path.name for path in load.iterdir()}
    after = load_without_tokenizer(ModelOptions(**{**vars(options), "path": save}))
    before = dict(linears(model))
    for each, linear in linears(after):
        added = made.scale * pairs[each][0][1] @ pairs[each][0][0] if each in pairs else 0
        torch.testing.assert_close(linear.weight, before[each].weight + added)


def test_a_precision_for_all(tmp_path, capsys):
    save = merged(TP1, tmp_path / "out", "--adapter", LORA, "--save-dtype", "bfloat16", *FLAGS, capsys=capsys)
    found = torch.load(save / ITERATION / "mp_rank_00_model_states.pt", weights_only=True)["module"]
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}


def test_refusals_leave_nothing(tmp_path, capsys):
    write_checkpoint(tmp_path / "int4", quantized_parts(4))
    torch.save({"transformer.layers.9.attention.dense.matrix_A.0": torch.zeros(2, 64),
                "transformer.layers.9.attention.dense.matrix_B.0": torch.zeros(64, 2)}, tmp_path / "far.pt")
    torch.save({"transformer.layers.0.attention.dense.matrix_A.0": torch.zeros(2, 63),
                "transformer.layers.0.attention.dense.matrix_B.0": torch.zeros(64, 2)}, tmp_path / "thin.pt")
    torch.save({"transformer.layers.0.attention.dense.matrix_A.0": torch.full((2, 64), torch.nan),
                "transformer.layers.0.attention.dense.matrix_B.0": torch.zeros(64, 2)}, tmp_path / "nan.pt")
    torch.save({"words": torch.zeros(2)}, tmp_path / "other.pt")
    write_adapter(tmp_path / "other base.safetensors", torch.load(LORA, weights_only=True), {"base": "abc", "alpha": 8})
    (tmp_path / "damaged.pt").write_bytes(b"nothing")
    shutil.copytree(TP1, tmp_path / "full")
    base = ["--save", tmp_path / "out", *FLAGS]
    for flags, message in (
            (["--load", tmp_path / "int4", "--adapter", LORA], "is quantised"),
            (["--load", TP1, "--adapter", PREFIX], "is a prefix, which is no part of any weight"),
            (["--load", TP1, "--adapter", tmp_path / "far.pt"], "adapts transformer.layers.9.attention.dense"),
            (["--load", TP1, "--adapter", tmp_path / "thin.pt"], "64 outputs and 64 inputs"),
            (["--load", TP1, "--adapter", tmp_path / "nan.pt"], "layers.0.attention.dense holds NaN"),
            (["--load", TP1, "--adapter", tmp_path / "other.pt"], "is no adapter"),
            (["--load", TP1, "--adapter", tmp_path / "damaged.pt"], "is no checkpoint"),
            (["--load", TP1, "--adapter", tmp_path / "other base.safetensors"], "trained on another base"),
            (["--load", TP1, "--adapter", tmp_path / "none.pt"], "there is no adapter"),
            (["--load", TP1, "--adapter", LORA, "--save", tmp_path / "full"], "exists already")):
        assert message in refused("merge", *base, *flags, capsys=capsys)
        assert not list(tmp_path.glob("out*"))


def test_the_expected_logits_are_here():
    with numpy.load(EXPECTED) as arrays:
        assert {name.partition("/")[0] for name in arrays.files} == {"lora", "lora_stacked", "prefix"}
