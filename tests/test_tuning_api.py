"""The functions of tuning.api against the kit: tokenizers, learning rates, order of rows, ChatGLM's rows."""

import json

import pytest

from runtime.errors import UserError
from tests.golden_data import GOLDEN, family_folder
from tests.golden_finetune import KIT, TOKENIZERS, has_tokenizer, lines
from tuning import api
from tuning.options import TokenizerOptions
from tuning.tokenizers import open_tokenizer

GPT2 = ("GPT2BPETokenizer", KIT / "tokenizer_bpe")


@pytest.mark.parametrize("name", ["bpe", "wordpiece", "sp"])
def test_ids_of_texts_and_back(name):
    if not has_tokenizer(name):
        pytest.skip("only the whole kit has this vocabulary")
    kind, folder, flags = TOKENIZERS[name]
    how = kind, KIT / folder, "--task-mask" in flags, "--fix-command-token" in flags
    for case in lines("tokenizer_cases.jsonl"):
        assert api.encode(case["text"], *how) == case[name]["ids"], case["text"]
        assert api.decode(case[name]["ids"], *how) == case[name]["decoded"], case["text"]


@pytest.mark.parametrize("folder", ["bpe", "wordpiece", "sp"])
def test_commands(folder):
    variants = {"bpe": ("bpe", False), "bpe_plain": ("bpe_plain", False), "bpe_dblock": ("bpe", True),
                "wordpiece": ("wordpiece", False), "sp": ("sp", False)}
    path = KIT / f"tokenizer_{folder}" / "commands.json"
    if not path.exists():
        pytest.skip("only the whole kit has this vocabulary")
    for variant, golden in json.loads(path.read_text(encoding="utf-8")).items():
        name, has_block_mask = variants.get(variant, ("sp", False))
        kind, _, flags = TOKENIZERS[name]
        fixed = variant in variants and "--fix-command-token" in flags
        options = TokenizerOptions(kind, path.parent, fixed, "--task-mask" in flags)
        tokenizer = open_tokenizer(options, has_block_mask=has_block_mask)
        assert tokenizer.num_tokens == golden["num_tokens"]
        for command, facts in golden["commands"].items():
            if command != "unk":
                assert tokenizer.command(f"[{command}]" if "MASK" in command else command) == facts["id"]


def test_task_masks_and_dblock_stand_behind_the_commands(tmp_path):
    """Of the vocabularies that the kit has only without them."""
    folder = family_folder("chinese", tmp_path)
    size = open_tokenizer(TokenizerOptions("ChineseSPTokenizer", folder)).command("eos")
    for fixed, masks, block in ((True, (9, 8), 10), (False, (7, 8), 9)):
        tokenizer = open_tokenizer(TokenizerOptions("ChineseSPTokenizer", folder, fixed, True), has_block_mask=True)
        found = [tokenizer.command(name) - size for name in ("[gMASK]", "[sMASK]", "dBLOCK")]
        assert found == [*masks, block] and tokenizer.num_tokens == size + block + 1
    words = KIT / "tokenizer_wordpiece"
    tokenizer = open_tokenizer(TokenizerOptions("BertWordPieceTokenizer", words, task_mask=True), has_block_mask=True)
    assert [tokenizer.command(name) for name in ("sop", "[gMASK]", "[sMASK]", "dBLOCK")] == [900, 902, 903, 904]


def test_the_vocabulary_of_roberta_is_known_by_its_commands(tmp_path):
    folder = family_folder("roberta", tmp_path)
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(vocabulary.read_text(encoding="utf-8").replace('"[MASK]"', '"<mask>"'), encoding="utf-8")
    tokenizer = open_tokenizer(TokenizerOptions("GPT2BPETokenizer", folder, task_mask=True))
    names = ("ENC", "pad", "eos", "sep", "[MASK]", "sop", "eop", "[gMASK]", "[sMASK]")
    assert [tokenizer.command(name) for name in names] == [0, 2, 2, 2, 639, 640, 641, 642, 643]


def test_an_unknown_tokenizer():
    with pytest.raises(UserError, match="GPT2BPETokenizer"):
        api.encode("a", "GPT3", KIT)
    with pytest.raises(UserError, match=str(GOLDEN)):
        api.encode("a", "GPT2BPETokenizer", GOLDEN)


@pytest.mark.parametrize("case", lines("expected/training/schedules.jsonl"), ids=lambda case: case["style"])
def test_learning_rates(case):
    rates = api.learning_rates(case["style"], case["total"], case["warmup"], case["ratio"], len(case["rates"]))
    assert rates == pytest.approx(case["rates"], rel=1e-6, abs=1e-9)


def test_a_schedule_that_cannot_be():
    for style, total, warmup in (("exponential", 10, 0.1), ("linear", 0, 0.1), ("linear", 10, 1.5)):
        with pytest.raises(UserError):
            api.learning_rates(style, total, warmup, 0.1, 3)


def test_order_of_rows():
    for case in lines("expected/training/orders.jsonl"):
        order = api.row_order(case["rows"], case["seed"], case["epoch"], case["world_size"], case["rank"])
        assert order == case["order"], case


SPECIAL = {"gmask": 1, "bos": 2, "eos": 3, "pad": 0}


def of_characters(text):
    """A tokenizer under which the kit's rows were made."""
    return [ord(character) for character in text]


def spelled(parts):
    """Ids of the kit's short form: texts, and [id, how often]."""
    return [token for part in parts
            for token in (of_characters(part) if isinstance(part, str) else [part[0]] * part[1])]


@pytest.mark.parametrize("case", json.loads((KIT / "expected/chatglm/rows.json").read_text(encoding="utf-8")),
                         ids=lambda case: f"{case['history_column']} {case['source_prefix']}")
def test_chat_rows_and_prompts(case):
    rows, how = lines("data/chat/train.json"), (case["history_column"] is not None, case["source_prefix"])
    found = api.chat_rows(rows, of_characters, SPECIAL, case["max_source_length"], case["max_target_length"], *how)
    assert found == [{name: spelled(parts) for name, parts in row.items()} for row in case["train"]]
    assert api.chat_prompts(rows, *how) == case["eval_prompts"]
