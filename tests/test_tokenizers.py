"""Golden ids and texts of the tokenizers of GLM and ChatGLM: what the originals make of the same files."""

import pytest

from glm.tokenizers.chatglm import ChatGLMTokenizer
from glm.tokenizers.opening import open_megatron_tokenizer, open_tokenizer
from runtime.errors import UserError
from tests.golden_data import family_folder, family_rows

KINDS = ("chinese", "gpt2", "bert", "roberta")
OURS = {"cls": "ENC", "eos": "eos", "pad": "pad", "mask": "[MASK]", "sop": "sop", "eop": "eop", "sep": "sep",
        "smask": "[sMASK]", "gmask": "[gMASK]"}
MEGATRON = [("chinese", "megatron_fix", True), ("chinese", "megatron_nofix", False), ("gpt2", "megatron", True),
            ("bert", "megatron", True)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    at = tmp_path_factory.mktemp("tokenizers")
    return {kind: family_folder(kind, at) for kind in (*KINDS, "chatglm", "chatglm2")}


@pytest.mark.parametrize("kind", KINDS)
def test_huggingface_glm(folders, kind):
    tokenizer = open_tokenizer(folders[kind])
    cases = [case for case in family_rows(kind, "cases.jsonl") if "ids_plain" in case]
    assert len(cases) > 50
    for case in cases:
        assert tokenizer.encode(case["text"], special_tokens=True) == case["ids_plain"], case["text"]
    for case in cases + family_rows(kind, "decode_cases.jsonl"):
        assert tokenizer.detokenize(case["ids"]) == case["decoded"], case["ids"]
        assert tokenizer.detokenize(case["ids"], special_tokens=False) == case["decoded_skip_special"], case["ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_commands_of_huggingface_glm(folders, kind):
    tokenizer, golden = open_tokenizer(folders[kind]), family_rows(kind, "special.json")
    assert tokenizer.num_tokens == golden["len"]
    if kind == "bert":  # has no eos of its own: a context ends with [SEP]
        golden["eos_token_id"] = golden["sep_token_id"]
    ids = {ours: golden[f"{name}_token_id"] for name, ours in OURS.items()}
    assert tokenizer.commands == {name: token for name, token in ids.items() if token is not None}
    masks = [tokenizer.command(name) for name in ("[MASK]", "[sMASK]", "[gMASK]") if name in tokenizer.commands]
    assert masks == golden["mask_token_ids"]


@pytest.mark.parametrize(("kind", "name", "fix"), MEGATRON)
def test_megatron_glm(folders, kind, name, fix):
    tokenizer = open_megatron_tokenizer(folders[kind], fix)
    for case in family_rows(kind, f"{name}.cases.jsonl"):
        assert tokenizer.encode(case["text"], special_tokens=True) == case["ids"], case["text"]
        assert tokenizer.detokenize(case["ids"]) == case["decoded"], case["ids"]
    golden = family_rows(kind, f"{name}.special.json")
    assert tokenizer.num_tokens == golden["num_tokens"]
    for command, facts in golden["commands"].items():
        text = f"a {facts['token']} b"
        ids = [*tokenizer.encode("a" if facts["lstrip"] else "a "), facts["id"], *tokenizer.encode(" b")]
        # BERT's and the Chinese vocabulary drop blanks at an end themselves
        assert tokenizer.encode(text, special_tokens=True) == ids, text
        if command != "unk":
            assert tokenizer.command(f"[{command}]" if "MASK" in command else command) == facts["id"]


def test_megatron_glm_with_the_vocabulary_of_roberta(folders, tmp_path):
    """Golden data has none: its commands are pieces of the vocabulary under other names."""
    folder = family_folder("roberta", tmp_path)
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(vocabulary.read_text(encoding="utf-8").replace('"[MASK]"', '"<mask>"'), encoding="utf-8")
    tokenizer = open_megatron_tokenizer(folder)
    assert [tokenizer.command(name) for name in ("ENC", "pad", "eos", "sep", "[MASK]", "sop")] == [0, 2, 2, 2, 639, 640]
    assert tokenizer.encode("[CLS] a [MASK]", special_tokens=True) == [0, *tokenizer.encode(" a"), 639]


@pytest.mark.parametrize(("form", "images", "first"), [("", 0, False), ("image20000_", 20000, False),
                                                       ("old_", 20000, True)])
def test_chatglm(folders, form, images, first):
    tokenizer = ChatGLMTokenizer(folders["chatglm"], images, first)
    for case in family_rows("chatglm", "cases.jsonl"):
        if "ids_plain" not in case:
            continue
        assert tokenizer.encode(case["text"], special_tokens=True) == case[form + "ids_plain"], case["text"]
        assert tokenizer.detokenize(case[form + "ids"]) == case[form + "decoded"], case["text"]
        if not first:
            shown = tokenizer.detokenize(case[form + "ids"], special_tokens=False)
            assert shown == case[form + "decoded_skip_special"], case["text"]
    golden = family_rows("chatglm", "special.json")
    golden = golden.get(form.removesuffix("_"), golden)
    names = {"sop": "bos", "[MASK]": "mask", "pad": "pad"} | ({"eos": "eos", "eop": "eop"} if first else {"eop": "eos"})
    assert {name: tokenizer.command(name) for name in names} == {
        name: golden.get(f"{theirs}_token_id", images + 1304) for name, theirs in names.items()}
    assert tokenizer.num_tokens == golden["vocab_size"]


def test_chatglm_decodes_any_ids(folders):
    tokenizers = {images: ChatGLMTokenizer(folders["chatglm"], images) for images in (0, 20000)}
    for case in family_rows("chatglm", "decode_cases.jsonl"):
        tokenizer = tokenizers[20000 if "tokenizer" in case else 0]
        ids = case["ids"] if isinstance(case["ids"], list) else [case["ids"]]
        if "error" in case:  # there an exception, here no reason to lose the answer
            assert "\ufffd" in tokenizer.detokenize(ids)
            continue
        assert tokenizer.detokenize(ids) == case["decoded"], ids
        if "decoded_skip_special" in case:
            assert tokenizer.detokenize(ids, special_tokens=False) == case["decoded_skip_special"], ids


def test_chatglm2(folders):
    tokenizer, golden = open_tokenizer(folders["chatglm2"]), family_rows("chatglm2", "special.json")
    for case in family_rows("chatglm2", "cases.jsonl"):
        if "ids_plain" in case:
            assert tokenizer.encode(case["text"], special_tokens=True) == case["ids_plain"], case["text"]
            assert tokenizer.detokenize(case["ids"]) == case["decoded"], case["text"]
            assert tokenizer.detokenize(case["ids_plain"]) == case["decoded_plain"], case["text"]
        elif "decode_ids" in case:
            assert tokenizer.detokenize(case["decode_ids"]) == case["decoded"], case["decode_ids"]
    assert tokenizer.commands == {name.strip("<>"): token for name, token in golden["commands"].items()}
    assert tokenizer.num_tokens == golden["vocab_size"]


def test_a_command_that_a_family_has_not(folders):
    with pytest.raises(UserError, match=r"unknown command token '\[gMASK\]', did you mean '\[MASK\]'\? \(known: .*sop"):
        open_tokenizer(folders["bert"]).command("[gMASK]")
