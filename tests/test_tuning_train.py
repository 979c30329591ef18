"""python -m tuning train: the originals' curves, exact resumption, and one line for what is wrong."""

import json
from itertools import cycle

import pytest
import torch

from tests.golden_finetune import KIT, TOKENIZERS, has_tokenizer, lines, run, tokenizer_flags
from tests.tiny_training import log_of, tiny_glm, training_flags, weights_of
from tuning import api
from tuning.__main__ import main
from tuning.batch import batch_of
from tuning.losses import loss_of
from tuning.model import load as open_model
from tuning.options import CheckpointOptions, ClozeOptions, DataOptions, Settings, TokenizerOptions
from tuning.tasks import samples_of

NO_DROPOUT = ["--hidden-dropout", "0", "--attention-dropout", "0", "--output-dropout", "0"]
SUPERGLUE = {"rte", "copa", "record", "wsc", "boolq", "cb"}


def flags_of(case):
    """Of a curve of the kit, which are also those of `inspect`."""
    kind = "superglue" if case["task"] in SUPERGLUE else "seq2seq"
    found = ["--task", case["task"], "--data-dir", KIT / "data" / kind / case["folder"], "--split", "train",
             *case["flags"]]
    found += ["--label-smoothing", "0.1"] if kind == "seq2seq" else []
    for name in ("seq_length", "src_seq_length", "tgt_seq_length"):
        found += [f"--{name.replace('_', '-')}", case[name]] if name in case else []
    return [*map(str, found), *tokenizer_flags(case["tokenizer"])]


def optimiser_flags(settings):
    beta1, beta2 = settings["betas"]
    found = {"lr": settings["lr"], "weight-decay": settings["weight_decay"], "adam-beta1": beta1, "adam-beta2": beta2,
             "adam-eps": settings["eps"], "clip-grad": settings["clip_grad"], "warmup": settings["warmup"],
             "lr-decay-style": settings["lr_decay_style"], "lr-decay-ratio": settings["lr_decay_ratio"],
             "train-iters": settings["total_steps"]}
    return [word for name, value in found.items() for word in (f"--{name}", str(value))]


def guids_of(case, capsys):
    """By the rows' numbers, as the kit names them: the right answers of a row of ReCoRD came in the order of a set."""
    samples = run("inspect", *flags_of(case), capsys=capsys)
    guids = [sample["guid"] for sample in samples]
    if case["task"] == "record":
        kind, folder, _ = TOKENIZERS[case["tokenizer"]]
        answers = {each["guid"]: each["meta"]["candidates"][0] for each in
                   lines("expected/superglue/ReCoRD.examples.jsonl") if each["split"] == "train"}
        ids = {guid: api.encode(f" {answer}", kind, KIT / folder) for guid, answer in answers.items()}
        for number, sample in enumerate(samples):
            choice = sample["choices"][0]
            found = [target for target, counts in zip(choice["target"], choice["loss_mask"], strict=True) if counts]
            guids[number] = next(guid for guid in answers if guid.rpartition("-")[0] == guids[number].rpartition("-")[0]
                                 and ids[guid] == found[:-1])
    return guids


def train(case, folder, save, capsys, *more):
    rows = {}  # guid -> numbers; a row of WSC with many candidates is several, which take turns
    for number, guid in enumerate(guids_of(case, capsys)):
        rows.setdefault(guid, []).append(number)
    turns = {guid: cycle(numbers) for guid, numbers in rows.items()}
    batches = folder / "batches.jsonl"
    batches.write_text("".join(json.dumps({"rows": [next(turns[guid]) for guid in batch]}) + "\n"
                               for batch in case["batches"]), encoding="utf-8")
    beside = []
    for flag, name in (("--head", case.get("head")), ("--prompt-encoder", case.get("prompt"))):
        beside += [flag, str(KIT / "checkpoints" / name)] if name else []
    return main(["train", *flags_of(case), "--load", str(KIT / "checkpoints" / "glm-tiny"), *beside, "--batches",
                 str(batches), "--save", str(save), *optimiser_flags(case["settings"]), *NO_DROPOUT, "--save-dtype",
                 "float32", *more])


CURVES = lines("expected/training/curves.jsonl")


@pytest.mark.parametrize("case", CURVES, ids=[case["name"].replace(" ", "-") for case in CURVES])
def test_curves_of_the_original(case, tmp_path, capsys):
    if not has_tokenizer(case["tokenizer"]):
        pytest.skip("only the whole kit has this vocabulary")
    assert train(case, tmp_path, tmp_path / "run", capsys) == 0, capsys.readouterr().err
    log = log_of(tmp_path / "run")
    assert [line["step"] for line in log] == list(range(len(case["losses"])))
    assert [line["loss"] for line in log] == pytest.approx([loss for loss, in case["losses"]], rel=1e-3, abs=1e-4)
    assert [line["learning_rate"] for line in log] == pytest.approx(case["learning_rates"], rel=1e-6, abs=1e-12)
    assert [line["gradient_norm"] for line in log] == pytest.approx(case["gradient_norms"], rel=1e-3, abs=1e-4)
    groups = json.loads((tmp_path / "run" / "parameters.json").read_text(encoding="utf-8"))
    for name in ("decayed", "not_decayed"):
        assert groups[name] == sorted(each.removeprefix("model.") for each in case[name])
    check_weights(tmp_path / "run", case)


def check_weights(folder, case):
    """[norm of the change, sum of the new values] of what has changed."""
    before, after = weights_of(KIT / "checkpoints" / "glm-tiny"), weights_of(folder)
    for name, file in ((case.get("head"), "head.pt"), (case.get("prompt"), "prompt_encoder.pt")):
        if name:
            before |= torch.load(KIT / "checkpoints" / name, weights_only=True)
            after |= torch.load(folder / file, weights_only=True)
    for name, (change, total) in case["changed"].items():
        if not name.endswith("query_key_value.bias"):
            name = name.removeprefix("model.")
            assert after[name].dtype == torch.float32
            found = float((after[name] - before[name].float()).norm()), float(after[name].sum())
            assert found == pytest.approx((change, total), rel=2e-3, abs=2e-3), name


PRETRAINING = lines("expected/training/pretrain_curve.jsonl")


@pytest.mark.parametrize("case", PRETRAINING, ids=[case["name"].replace(" ", "-") for case in PRETRAINING])
def test_pretraining_of_the_original(case, tmp_path):
    strategy = [word for name, value in case["strategy"].items()
                for word in ((f"--{name.replace('_', '-')}", str(value)) if value is not True else ())]
    batches = tmp_path / "batches.jsonl"
    batches.write_text("".join(json.dumps({name: batch[name] for name in ("count", "indices")}) + "\n"
                               for batch in case["batches"]), encoding="utf-8")
    save = tmp_path / "run"
    assert main(["train", "--task", "pretrain", "--train-data", str(KIT / "data" / "pretrain" / "documents.jsonl"),
                 "--seq-length", str(case["seq_length"]), *strategy, "--block-mask-prob", "0", *tokenizer_flags("bpe"),
                 "--load", str(KIT / "checkpoints" / "glm-tiny"), "--save", str(save), "--batches", str(batches),
                 *optimiser_flags(case["settings"]), *NO_DROPOUT, "--save-dtype", "float32"]) == 0
    log = log_of(save)
    assert [line["loss"] for line in log] == pytest.approx([loss for loss, in case["losses"]], rel=1e-3, abs=1e-4)
    assert [line["gradient_norm"] for line in log] == pytest.approx(case["gradient_norms"], rel=1e-3, abs=1e-4)
    assert not any("rows" in line for line in log)
    check_weights(save, case)


def by_hand(load, batches, rates):
    """The same training with torch's own parts: losses, norms, weights."""
    kind, folder, _ = TOKENIZERS["bpe"]
    rows = samples_of(Settings(
        TokenizerOptions(kind, KIT / folder, task_mask=True), cloze=ClozeOptions(cloze_eval=True),
        data=DataOptions("copa", KIT / "data" / "superglue" / "COPA", "train", seq_length=64)))
    tuned = open_model(CheckpointOptions(load))
    named = tuned.learn(lambda name: True)
    vectors = [parameter for name, parameter in named.items() if parameter.dim() == 1]
    matrices = [parameter for parameter in named.values() if parameter.dim() > 1]
    adam = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}],
                             betas=(0.9, 0.999), eps=1e-8)
    losses, norms = [], []
    for batch, rate in zip(batches, rates, strict=True):
        loss = loss_of(tuned, batch_of([rows[row] for row in batch], tuned.model.config))
        adam.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(list(named.values()), 1.0)))
        losses.append(loss.item())
        for group in adam.param_groups:
            group["lr"] = rate
        adam.step()
    return losses, norms, {name: parameter.detach() for name, parameter in named.items()}


@pytest.mark.parametrize("parts", [1, 3])
def test_a_training_is_what_torch_makes_of_it(tmp_path, parts):
    """In the documented order of rows; the parts of an accumulation add up to the whole."""
    load, save = tiny_glm(tmp_path / "glm"), tmp_path / "run"
    assert main(["train", *training_flags(load, "--save", save, *NO_DROPOUT, "--gradient-accumulation-steps", parts,
                                          "--batch-size", 5, "--warmup", 0.25)]) == 0
    order = [row for epoch in range(4) for row in api.row_order(12, 1234, epoch)]
    batches = [batch for epoch in range(4) for batch in
               (order[12 * epoch:12 * epoch + 5], order[12 * epoch + 5:12 * epoch + 10], order[12 * epoch + 10:][:2])]
    rates = [1e-2 * rate for rate in api.learning_rates("linear", 12, 0.25, 0.1, 12)]
    losses, norms, weights = by_hand(load, batches, rates)
    log = log_of(save)
    assert [line["rows"] for line in log] == batches
    assert [line["loss"] for line in log] == pytest.approx(losses, rel=1e-3, abs=1e-4)
    assert [line["gradient_norm"] for line in log] == pytest.approx(norms, rel=1e-2, abs=1e-3)
    for name, tensor in weights_of(save).items():
        if "query_key_value.bias" not in name:
            assert torch.allclose(tensor, weights[name], atol=2e-3), name
