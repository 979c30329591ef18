"""Training of what lies beside a frozen model: ChatGLM's prefixes as the original trains them, and LoRA."""

import json
import shutil

import pytest
import torch

from tests.golden_finetune import KIT
from tests.tiny_training import log_of, tiny_glm, training_flags, weights_of
from tuning.__main__ import main

CHAT = KIT / "expected" / "chatglm" / "cases.json"
HAS_MODEL = (KIT / "checkpoints" / "chatglm-tiny.pt").exists()
CASES = json.loads(CHAT.read_text(encoding="utf-8")) if CHAT.exists() else {"cases": []}
CURVES = [case for case in CASES["cases"] if "curve" in case and HAS_MODEL]


@pytest.mark.parametrize("case", CURVES, ids=lambda case: case["name"])
def test_prefixes_of_the_original(case, tmp_path):
    kit, curve = KIT / "checkpoints", case["curve"]
    values = json.loads((kit / "chatglm-tiny.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"model_type": "chatglm"}))
    shutil.copy(kit / "chatglm-tiny.pt", tmp_path / "pytorch_model.bin")
    for name, rows in (("rows.jsonl", [{key: sample[key] for key in ("input_ids", "labels")}
                                       for sample in CASES["samples"]]),
                       ("batches.jsonl", [{"rows": rows} for rows in curve["rows"]])):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    is_projected = case["prefix_projection"]
    file, save = kit / f"chatglm-prefix{'-projection' * is_projected}.pt", tmp_path / "run"
    flags = ["--task", "chat", "--tokenized", tmp_path / "rows.jsonl", "--load", tmp_path, "--pre-seq-len",
             case["pre_seq_len"], *["--prefix-projection"] * is_projected, "--prefix-encoder", file, "--batches",
             tmp_path / "batches.jsonl", "--save", save, "--lr", curve["lr"], "--train-iters", curve["steps"],
             "--warmup", 0, "--lr-decay-ratio", 0, "--weight-decay", 0, "--hidden-dropout", 0, "--attention-dropout",
             0, "--output-dropout", 0, "--save-dtype", "float32"]
    assert main(["train", *map(str, flags)]) == 0
    assert [line["loss"] for line in log_of(save)] == pytest.approx(curve["losses"], rel=1e-3, abs=1e-4)
    saved = torch.load(save / "pytorch_model.bin", weights_only=True)
    assert {name: list(tensor.shape) for name, tensor in saved.items()} == case["state_dict"]
    names = json.loads((save / "parameters.json").read_text())
    assert sorted(names["decayed"] + names["not_decayed"]) == sorted(case["trainable"])
    assert not (save / "config.json").exists()
    flags[flags.index("--prefix-encoder") + 1] = save
    flags[flags.index("--save") + 1] = tmp_path / "further"
    assert main(["train", *map(str, flags)]) == 0 and log_of(tmp_path / "further") != log_of(save)


@pytest.fixture(scope="module")
def glm(tmp_path_factory):
    return tiny_glm(tmp_path_factory.mktemp("glm"))


def scores(load, capsys, *more):
    flags = training_flags(load)
    capsys.readouterr()
    assert main(["evaluate", *flags[:flags.index("--batch-size")], "--split", "dev", *map(str, more)]) == 0
    return [row["scores"] for row in json.loads(capsys.readouterr().out)["rows"]]


@pytest.mark.parametrize("form, file, more", [
    ("glm", "adapter.safetensors", ["--lora-split-qkv"]), ("sat", "lora.pt", ["--lora-split-qkv"]),
    ("peft", ".", []), ("glm", "adapter.safetensors", ["--quantization-bit-width", "8"])])
def test_lora_learns_alone_and_is_read_again(glm, tmp_path, capsys, form, file, more):
    save = tmp_path / "run"
    flags = ["--lora-rank", 4, "--lora-alpha", 8, "--lora-dropout", 0.1, "--lora-format", form, *more]
    assert main(["train", *training_flags(glm, "--save", save, *flags, steps=4)]) == 0, capsys.readouterr().err
    names = json.loads((save / "parameters.json").read_text())
    assert all(".matrix_A." in name or ".matrix_B." in name for name in names["decayed"]) and names["decayed"]
    assert names["not_decayed"] == [] and (save / file).exists()
    assert not (save / "latest_checkpointed_iteration.txt").exists()
    bits = more if "--quantization-bit-width" in more else []
    before, after = scores(glm, capsys, *bits), scores(glm, capsys, *bits, "--adapter", save / file, *(
        ["--lora-alpha", 8] if form == "sat" else []))
    assert before != after
    if not bits:
        merged = tmp_path / "merged"
        assert main(["merge", "--load", str(glm), "--adapter", str(save / file), "--save", str(merged),
                     *(["--lora-alpha", "8"] if form == "sat" else [])]) == 0, capsys.readouterr().err
        for one, two in zip(scores(merged, capsys), after, strict=True):
            assert one == pytest.approx(two, abs=2e-3)


def test_a_frozen_model_is_left_as_it_is(glm, tmp_path):
    save = tmp_path / "run"
    more = ["--continuous-prompt", "--num-prompt-tokens", 3, "--freeze-transformer", "--tune-prefix-layers", 1]
    assert main(["train", *training_flags(glm, "--save", save, *more, steps=3)]) == 0
    before, after = weights_of(glm), weights_of(save)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("transformer.layers.0.") for name in changed)
    assert "prompt_spell.lstm_head.weight_ih_l0" in torch.load(save / "prompt_encoder.pt", weights_only=True)
