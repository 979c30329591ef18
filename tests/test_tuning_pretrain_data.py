"""Packed documents and batches with blanks against the kit, through the command; the draws' statistics; mistakes."""

import itertools
import json
import random
from collections import Counter

import pytest
import torch

import glm
from runtime.errors import UserError
from tests.cloned_scripts import ROOT
from tests.golden_data import family_folder
from tests.golden_family import causal, checkpoint
from tests.golden_finetune import KIT, lines, refused, run, tokenizer_flags
from tuning import api
from tuning.data.pretrain import Order, open_pretraining
from tuning.options import DataOptions, DocumentOptions, ObjectiveOptions, Settings, TokenizerOptions
from tuning.tokenizers import open_for

DOCUMENTS = KIT / "data/pretrain/documents.jsonl"
CONF = json.loads((KIT / "expected/pretrain/conf.json").read_text(encoding="utf-8"))
TINY = KIT / "checkpoints/glm-tiny"
FLAGS = {"bert_ratio": "bert_mask_ratio", "average_block_length": "avg_block_length"}
SWITCHES = {"shuffle_blocks": "no-shuffle-block", "block_position_encoding": "no-block-position"}  # said by False


def of_strategy(strategy):
    """The flags of a strategy of the kit."""
    given = []
    for name, value in strategy.items():
        if name in SWITCHES:
            given += [] if value else [f"--{SWITCHES[name]}"]
        elif value is True:
            given += [f"--{name}"]
        elif value is not False:
            given += [f"--{FLAGS.get(name, name)}", value]
    return [str(word).replace("_", "-") for word in given]


def inspect(*arguments, capsys, tokenizer="bpe"):
    return run("inspect", "--task", "pretrain", "--train-data", DOCUMENTS, *tokenizer_flags(tokenizer), *arguments,
               capsys=capsys)


def test_packed_samples(capsys):
    cases = lines("expected/pretrain/packed.jsonl")
    for (length, several), group in itertools.groupby(
            cases, lambda case: (case["seq_length"], case["across_documents"])):
        golden = list(group)
        found = inspect("--seq-length", length, "--indices", ",".join(str(case["index"]) for case in golden),
                        *([] if several else ["--sample-one-document"]), capsys=capsys)
        assert found == [{"index": case["index"], "input_ids": case["text"], "loss_mask": case["loss_mask"]}
                         for case in golden]


@pytest.mark.parametrize("name", CONF["strategies"])
def test_batches_with_blanks(name, tmp_path, capsys):
    golden = [case for case in lines("expected/pretrain/blanks.jsonl") if case["conf"] == name]
    file = tmp_path / "batches.jsonl"
    file.write_text("".join(json.dumps({"count": case["count"], "indices": case["indices"],
                                        "random_seed": 1000 + case["count"]}) + "\n" for case in golden))
    model = ["--load", TINY] if TINY.is_dir() else []  # the whole kit has one
    found = inspect("--seq-length", CONF["seq_length"], "--batches", file, *of_strategy(CONF["strategies"][name]),
                    *model, tokenizer="bpe_plain", capsys=capsys)
    if model:
        assert [batch.pop("loss") for batch in found] == pytest.approx([case["loss"] for case in golden], rel=1e-5)
    assert found == [{
        "count": case["count"], "mode": case["mode"], "input_ids": case["text"],
        "position_ids": [list(pair) for pair in zip(case["position"], case["block"], strict=True)],
        "target": case["target"], "loss_mask": case["loss_mask"], "sep": case["sep"]} for case in golden]


def test_the_loss_of_a_batch_is_the_mean_over_its_answers(tmp_path, capsys):
    load, words = checkpoint("glm", "hf_gpt2"), family_folder("gpt2", tmp_path)
    model, _ = glm.load(load, tokenizer_path=words)
    file = tmp_path / "batches.jsonl"
    file.write_text('{"count": 0, "indices": [0, 1]}\n')
    (found,) = run("inspect", "--task", "pretrain", "--train-data", DOCUMENTS, "--batches", file, "--load", load,
                   "--seq-length", "64", "--tokenizer-type", "GPT2BPETokenizer", "--tokenizer-path", words,
                   capsys=capsys)
    tokens, places, target, mask = (torch.tensor(found[name]) for name in
                                    ("input_ids", "position_ids", "target", "loss_mask"))
    logits = model.logits(tokens, places, causal(found["sep"], tokens.shape[1]))
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
    assert found["loss"] == pytest.approx(float((losses * mask.flatten()).sum() / mask.sum()), rel=1e-5)


def source(length=96, task_mask=True, **objective):
    settings = Settings(TokenizerOptions("GPT2BPETokenizer", KIT / "tokenizer_bpe", task_mask=task_mask),
                        DataOptions(seq_length=length), objective=ObjectiveOptions(**objective),
                        documents=DocumentOptions(DOCUMENTS))
    return open_pretraining(settings, open_for(settings))


def test_modes_of_many_batches():
    golden = json.loads((KIT / "expected/pretrain/distribution.json").read_text(encoding="utf-8"))
    corpus = source(bert_prob=0.5, gap_sentence_prob=0.3, gpt_min_ratio=0.25, single_span_prob=0.05)
    modes = Counter(corpus.batch(Order(count, (count % 7, count % 5))).mode for count in range(golden["draws"]))
    assert modes == golden["modes of bert 0.5, sentence 0.3, single span 0.05"]


def test_lengths_and_share_of_short_blanks():
    golden = json.loads((KIT / "expected/pretrain/distribution.json").read_text(encoding="utf-8"))
    corpus, lengths, shares = source(bert_prob=1.0), Counter(), []
    for count in range(golden["draws"]):
        (row,) = corpus.batch(Order(count, (count % 7,))).rows
        blocks = row.blocks[row.sep:]
        ends = [block for block, following in itertools.pairwise((*blocks, 1)) if following == 1]
        lengths.update(end - 1 for end in ends)
        hidden = sum(blocks) and sum(end - 1 for end in ends)
        shares.append(hidden / (row.sep - len(ends) + hidden))
    for length, times in golden["span_lengths"].items():
        assert abs(lengths[int(length)] - times) <= 5 * times**0.5 + 3
    assert sum(shares) / len(shares) == pytest.approx(golden["masked_share_mean"], abs=2e-3)
    assert min(shares) >= golden["masked_share_min"] - 1e-4


def test_dblock_hides_answers_and_what_is_near_blanks():
    hidden = source(bert_prob=1.0, block_mask_prob=1.0, context_mask_ratio=0.1)
    (row,) = hidden.batch(Order(3, (0,))).rows
    (seen,) = source(bert_prob=1.0).batch(Order(3, (0,))).rows
    block, sop = hidden.commands.block, hidden.commands.sop
    assert row.target == seen.target and row.places == seen.places
    assert set(row.input_ids[row.sep:]) == {block, sop}
    changed = [place for place in range(row.sep) if row.input_ids[place] != seen.input_ids[place]]
    assert len(changed) == int(0.1 * len(hidden.sample(0).ids))
    masks = [place for place in range(row.sep) if seen.input_ids[place] == hidden.commands.mask]
    assert all(row.input_ids[place] == block and min(abs(place - mask) for mask in masks) <= 3 for place in changed)


def test_a_sample_that_has_no_room_for_its_blanks_is_left_out_or_its_batch_cannot_be(tmp_path, capsys):
    file = tmp_path / "batches.jsonl"
    file.write_text('{"count": 0, "indices": [0, 1]}\n')
    (found,) = inspect("--seq-length", "8", "--bert-prob", "1", "--bert-mask-ratio", "0.9", "--batches", file,
                       capsys=capsys)
    assert found == {"count": 0, "error": "no sample of the batch has a blank"}
    order = Order(0, tuple(range(40)))
    batch = source(16, bert_prob=1.0, bert_mask_ratio=0.6).batch(order)
    assert 0 < batch.left_out == 40 - len(batch.rows) < 40
    with pytest.raises(UserError, match=r"batch 0, of the samples 0, 1: no sample"):
        source(8, bert_prob=1.0, bert_mask_ratio=0.9).samples(Order(0, (0, 1)))


def test_draws_of_dblock_leave_the_other_draws_alone():
    random.seed(5)
    state = random.getstate()
    source(bert_prob=1.0, block_mask_prob=0.5).batch(Order(1, (0, 1)))
    assert random.getstate() == state


@pytest.mark.parametrize(("flags", "words"), [
    ([], "--indices"),
    (["--indices", "1,-1"], "1,-1"),
    (["--indices", "0", "--train-data", "nowhere.jsonl"], "nowhere.jsonl"),
    (["--indices", "0", "--bert-prob", "1.5"], "--bert-prob"),
])
def test_mistakes_in_flags(flags, words, capsys):
    assert words in refused("inspect", "--task", "pretrain", "--train-data", DOCUMENTS, *tokenizer_flags("bpe"), *flags,
                            capsys=capsys)


@pytest.mark.parametrize(("text", "words"), [
    ("", "holds no text"), ("[1]\n", ":1: "),
    ('{"text": "a"}\n{"text": 3}\n', ":2: "),
    ('{"prompt": "a"}\n', ":1: "),
    ('{"text": ""}\n', "holds no text"), ('{"text": \n', ":1: "),
])
def test_mistakes_in_documents(text, words, tmp_path, capsys):
    file = tmp_path / "documents.jsonl"
    file.write_text(text)
    told = refused("inspect", "--task", "pretrain", "--train-data", file, *tokenizer_flags("bpe"), "--indices", "0",
                   capsys=capsys)
    assert words in told and str(file) in told


@pytest.mark.parametrize("line", ["[]", '{"count": 1}', '{"count": -1, "indices": [0]}', '{"count": 1, "indices": []}',
                                  '{"count": 1, "indices": [0], "random_seed": "x"}'])
def test_mistakes_in_batches(line, tmp_path, capsys):
    file = tmp_path / "batches.jsonl"
    file.write_text('{"count": 0, "indices": [0]}\n' + line + "\n")
    assert ":2: " in refused("inspect", "--task", "pretrain", "--train-data", DOCUMENTS, *tokenizer_flags("bpe"),
                               "--batches", file, capsys=capsys)


def test_steps_of_classification_tasks(tmp_path, capsys):
    """As many as the ratio says, by the number of the step; the label's verbalizer is what is learnt at sop."""
    folder = tmp_path / "RTE"
    folder.mkdir()
    rows = [{"premise": "It rains.", "hypothesis": "It is dry.", "label": "not_entailment", "idx": 0}]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "batches.jsonl").write_text("".join(f'{{"count": {count}, "indices": [0]}}\n' for count in range(20)))
    flags = ["--batches", tmp_path / "batches.jsonl", "--multi-task-ratio", "0.5", "--multi-batch-size", "3"]
    found = inspect(*flags, "--multi-task-data", f"rte={folder}", capsys=capsys)
    supervised = [batch for batch in found if batch["mode"] == "supervised"]
    assert [batch["count"] for batch in supervised] == [
        count for count in range(20) if random.Random(count).random() < 0.5]
    for ids, target, mask, sep in (row for batch in supervised for row in zip(
            batch["input_ids"], batch["target"], batch["loss_mask"], batch["sep"], strict=True)):
        assert mask == [int(place == sep) for place in range(len(ids))] and ids[sep] == 1100
        assert api.decode([target[sep]], "GPT2BPETokenizer", KIT / "tokenizer_bpe") in (" No", " false")
    assert len(supervised[0]["input_ids"]) == 3
    for wrong, words in ((f"rte={tmp_path}", "train.jsonl"), ("rte", "rte=FOLDER"), (f"art={folder}", "no such task")):
        assert words in refused("inspect", "--task", "pretrain", "--train-data", DOCUMENTS, *tokenizer_flags("bpe"),
                                *flags, "--multi-task-data", wrong, capsys=capsys)
    assert "both or neither" in refused("inspect", "--task", "pretrain", "--train-data", DOCUMENTS, *flags,
                                        *tokenizer_flags("bpe"), capsys=capsys)


def test_another_family_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "documents.jsonl").write_text('{"prompt": "", "text": "a"}\n')
    assert "--task pretrain is for the vocabularies of the GLM repository" in refused(
        "inspect", "--task", "pretrain", "--train-data", tmp_path / "documents.jsonl", "--indices", "0", "--load",
        ROOT / "checkpoints" / "glm-small", capsys=capsys)
