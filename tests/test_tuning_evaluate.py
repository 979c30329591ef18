"""python -m tuning evaluate: every result of the originals on choices and labels, and ChatGLM's losses."""

import json
import shutil

import numpy
import pytest

from tests.golden_finetune import KIT, lines, run, tokenizer_flags
from tuning import api

FOLDERS = {"copa": "COPA", "rte": "RTE", "cb": "CB", "wic": "WiC", "boolq": "BoolQ", "multirc": "MultiRC",
           "record": "ReCoRD", "wsc": "WSC"}
HAS_MODEL = (KIT / "checkpoints" / "glm-tiny").is_dir()
RESULTS = [each for each in lines("expected/superglue/results.jsonl") if "error" not in each] if HAS_MODEL else []
CHAT = (json.loads((KIT / "expected/chatglm/cases.json").read_text(encoding="utf-8")) if HAS_MODEL
        else {"cases": [], "samples": []})


def flags(result):
    """Of the command that asks for one of the kit's results."""
    variant, words = result["variant"], result["variant"].split()
    yield from ("--task", result["task"], "--split", result["split"], "--seq-length", result["seq_length"])
    yield from (*tokenizer_flags("bpe"), "--load", KIT / "checkpoints" / "glm-tiny", "--eval-batch-size", 4)
    yield from ("--losses", ",".join(result["losses"]))
    has_candidates = "candidates" in variant
    yield from ("--data-dir", KIT / "data/superglue" / ("WSC-negative" if has_candidates else FOLDERS[result["task"]]))
    if has_candidates:
        yield from ("--wsc-negative", "--length-penalty", 1)
    if variant.startswith("cloze"):
        yield from ("--cloze-eval", "--pattern-id", result["pattern"])
    else:
        yield from ("--head", KIT / "checkpoints" / f"head_{words[1].strip(',')}.pt", "--pool-token", words[-1])
    if "length_penalty" in variant:
        yield from ("--length-penalty", words[-1])
    if "segment_length" in variant:
        yield from ("--segment-length", words[-1])
    for word, flag in (("multi_token", "--multi-token"), ("no_block_position", "--no-block-position")):
        if word in variant:
            yield flag
    if result["task"] == "record" and any("-a" in guid for guid in result["guids"]):
        yield "--for-train"
    if "prompt" in variant:
        kind, count, before = words[-4], words[-3], words[-1]
        yield from ("--continuous-prompt", "--num-prompt-tokens", count, "--prefix-prompt", before, "--prompt-func",
                    kind, "--prompt-encoder", KIT / f"checkpoints/prompt_{kind}_{int(count) + int(before)}.pt")


@pytest.mark.parametrize("result", [pytest.param(each, id=f"{each['task']} {each['variant']} {each['pattern']} "
                                                          f"{each['split']}") for each in RESULTS])
def test_results_of_the_original(result, capsys):
    found, = run("evaluate", *flags(result), capsys=capsys)
    rows, once = found["rows"], [guid for guid in result["guids"] if result["guids"].count(guid) == 1]
    assert [row["guid"] for row in rows] == result["guids"] and found["skipped"] == result.get("skipped", [])
    # the answers of a question of ReCoRD are a set to the original, whose order is any
    wanted = {guid: result["scores"][guid] for guid in once} if "scores" in result else {}
    for row in rows:
        if row["guid"] in wanted and "segment" not in result["variant"]:
            others = [wanted[guid] for guid in once if guid.rpartition("-a")[0] == row["guid"].rpartition("-a")[0]]
            candidates = others if result["task"] == "record" and "-a" in row["guid"] else [wanted[row["guid"]]]
            assert any(row["scores"] == pytest.approx(each, abs=1e-3) for each in candidates)
        if row["guid"] in once:
            assert (row["prediction"], row["label"]) == (result["predictions"][row["guid"]],
                                                         result["labels"][row["guid"]])
    assert {name: found["metrics"][name] for name in result.get("metrics", {})} == pytest.approx(
        result.get("metrics", {}), abs=1e-6)
    for name, losses in result["losses"].items():
        assert found["losses"][name] == pytest.approx(losses, rel=1e-4)


@pytest.fixture
def chatglm(tmp_path):
    """The kit's ChatGLM as transformers writes it, and its rows."""
    kit = KIT / "checkpoints"
    values = json.loads((kit / "chatglm-tiny.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"model_type": "chatglm"}))
    shutil.copy(kit / "chatglm-tiny.pt", tmp_path / "pytorch_model.bin")
    rows = [{name: sample[name] for name in ("input_ids", "labels")} for sample in CHAT["samples"]]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def prefix_of(case):
    """The kit's file of a case's prefix, and whether it has a projection."""
    if case["name"] == "plain":
        return None, False
    is_projected = case["prefix_projection"]
    return KIT / "checkpoints" / f"chatglm-prefix{'-projection' * is_projected}.pt", is_projected


@pytest.mark.parametrize("case", CHAT["cases"], ids=lambda case: case["name"])
def test_chatglm_s_losses_logits_and_prefixes(case, chatglm, capsys):
    file, is_projected = prefix_of(case)
    prefix = [] if file is None else ["--prefix-encoder", file, "--pre-seq-len", case["pre_seq_len"],
                                      *["--prefix-projection"] * is_projected]
    found, = run("evaluate", "--task", "chat", "--tokenized", chatglm / "rows.jsonl", "--load", chatglm, *prefix,
                 "--eval-batch-size", 5, capsys=capsys)
    assert [row["loss"] for row in found["rows"]] == pytest.approx(case["row_losses"], rel=1e-4)
    assert found["losses"]["cross_entropy"] == [pytest.approx(case["loss"], rel=1e-4)]
    how = {"prefix_encoder": file, "pre_seq_len": case.get("pre_seq_len", 0), "prefix_projection": is_projected}
    logits = api.chat_logits(chatglm, [sample["input_ids"] for sample in CHAT["samples"]], **how)
    with numpy.load(KIT / "expected/chatglm/logits.npz") as arrays:
        numpy.testing.assert_allclose(logits[0], arrays[f"{case['name']}/row0"], atol=1e-3)
        assert (logits.argmax(-1) == arrays[f"{case['name']}/argmax"]).all()
        if file is not None:
            numpy.testing.assert_allclose(api.chat_prefix(chatglm, **how), arrays[f"{case['name']}/past_key_values"],
                                          atol=1e-5)


@pytest.mark.skipif(not HAS_MODEL, reason="GLM_GOLDEN_FINETUNE names no whole kit")
def test_results_do_not_depend_on_the_batch(capsys):
    result = RESULTS[0]
    first, second = (run("evaluate", *flags(result), "--eval-batch-size", size, capsys=capsys)[0]["rows"]
                     for size in (1, 8))
    for one, two in zip(first, second, strict=True):
        assert one["scores"] == pytest.approx(two["scores"], abs=1e-4) and one["prediction"] == two["prediction"]
