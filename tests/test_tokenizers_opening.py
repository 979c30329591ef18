"""Which tokenizer a folder holds, and what is said of folders that hold none or a damaged one."""

import json
import os
import re

import pytest
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from glm.tokenizers.chatglm import ChatGLM2Tokenizer, ChatGLMTokenizer
from glm.tokenizers.icetk import IcetkTokenizer
from glm.tokenizers.opening import kind_of, open_megatron_tokenizer, open_tokenizer
from runtime.errors import UserError
from tests.golden_data import TOKENIZER, family_folder

TEXT = "It 's [MASK] , 你好 <sop>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
SETTINGS = "tokenizer_config.json"


def set_in(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


@pytest.mark.parametrize("kind", ["chinese", "gpt2", "bert"])
def test_the_vocabulary_alone_says_enough(tmp_path, kind):
    """Commands have their ids behind it: a folder without the port's settings is that of the original in Megatron's
    style, or somebody's own."""
    folder = family_folder(kind, tmp_path)
    whole = open_tokenizer(folder)
    assert open_tokenizer(whole.vocabulary_file).vocabulary_files == whole.vocabulary_files
    for name in (SETTINGS, "added_tokens.json", "config.json"):
        (folder / name).unlink()
    bare = open_tokenizer(folder)
    assert (bare.commands, bare.num_tokens) == (whole.commands, whole.num_tokens)
    assert bare.encode(TEXT, special_tokens=True) == whole.encode(TEXT, special_tokens=True)


def test_the_vocabulary_of_roberta_is_known_by_its_commands(tmp_path):
    folder = family_folder("roberta", tmp_path)
    (folder / SETTINGS).unlink()
    assert kind_of(folder) == "GLMRobertaTokenizer"


def test_chatglm_and_its_revisions(tmp_path):
    folder = family_folder("chatglm", tmp_path)
    today = open_tokenizer(folder)
    assert isinstance(today, ChatGLMTokenizer) and today.encode("</s>", special_tokens=True) == today.encode("</s>")
    set_in(folder / SETTINGS, num_image_tokens=20000)
    with pytest.raises(UserError, match=r"<sop> the id 21304, config\.json says 1304: .* copy both from the same one"):
        open_tokenizer(folder)
    set_in(folder / "config.json", bos_token_id=21304)
    assert open_tokenizer(folder).command("sop") == 21304
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    del settings["num_image_tokens"]
    (folder / SETTINGS).write_text(json.dumps(settings | {"eos_token": "</s>", "eop_token": "<eop>"}), encoding="utf-8")
    first = open_tokenizer(folder)
    assert first.num_image_tokens == 20000 and first.encode("</s>", special_tokens=True) == [20002]


def test_chatglm2_has_another_vocabulary_under_the_same_name(tmp_path):
    assert isinstance(open_tokenizer(family_folder("chatglm2", tmp_path)), ChatGLM2Tokenizer)


def test_icetk_with_and_without_the_pieces_that_are_appended(tmp_path):
    """ChatGLM-6B's file has them, GLM-130B's has not; with its settings away the folder is one of GLM-130B's."""
    folder = family_folder("chatglm", tmp_path)
    today = open_tokenizer(folder)
    for name in (SETTINGS, "config.json"):
        (folder / name).unlink()
    icetk = open_tokenizer(folder, num_image_tokens=0)
    assert type(icetk) is IcetkTokenizer and icetk.num_tokens == today.num_tokens
    assert icetk.encode("a\n\tb   c 你 ❄") == today.encode("a\n\tb   c 你 ❄")
    assert icetk.command("dBLOCK") == today.command("dBLOCK")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "ice_text.model").write_bytes((TOKENIZER / "ice_text.model").read_bytes())
    assert open_tokenizer(bare).command("[gMASK]") == 23001


def test_no_code_of_a_folder_is_run(tmp_path):
    folder = family_folder("gpt2", tmp_path)
    for module in ("tokenization_glm", "configuration_glm"):
        (folder / f"{module}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", encoding="utf-8")
    open_tokenizer(folder)
    open_megatron_tokenizer(folder)
    assert not (tmp_path / "ran").exists()


def test_strings_of_the_settings_and_where_they_take_white_space(tmp_path):
    folder = family_folder("roberta", tmp_path)
    as_string = open_tokenizer(folder)
    a, b, mask = as_string.encode("a"), as_string.encode(" b"), as_string.command("[MASK]")
    assert as_string.encode("a [MASK] b", special_tokens=True) == [*a, mask, *b]
    set_in(folder / SETTINGS, mask_token={"content": "[MASK]", "lstrip": True, "rstrip": True})
    assert open_tokenizer(folder).encode("a [MASK] b", special_tokens=True) == [*a, mask, *as_string.encode("b")]
    set_in(folder / SETTINGS, mask_token="<s>", additional_special_tokens=["<|endofpiece|>"])
    other = open_tokenizer(folder)
    assert other.command("[MASK]") == 0
    assert other.detokenize([641, mask], special_tokens=False) == "[MASK]"


@pytest.mark.parametrize(("kind", "name"), [
    ("chinese", "cog-pretrain.model"), ("gpt2", "vocab.json"), ("gpt2", "merges.txt"), ("bert", "vocab.txt"),
    ("roberta", "merges.txt"), ("chatglm", "ice_text.model"), ("chatglm2", "tokenizer.model")])
def test_a_vocabulary_that_is_missing_or_a_pointer(tmp_path, kind, name):
    path = family_folder(kind, tmp_path) / name
    path.write_bytes(POINTER)
    with pytest.raises(UserError, match=rf"{re.escape(name)} is not .*git lfs pull"):
        open_tokenizer(path.parent)
    path.unlink()
    with pytest.raises(UserError, match=rf"no vocabulary file at .*{re.escape(name)}: .*--tokenizer-path"):
        open_tokenizer(path.parent)
    if name == "tokenizer.model":
        (path.parent / SETTINGS).unlink()
        with pytest.raises(UserError, match=f"no vocabulary file at .*{re.escape(name)}"):
            open_tokenizer(path.parent)


@pytest.mark.parametrize(("kind", "name", "content", "message"), [
    ("chinese", "cog-pretrain.model", b"\x0a\x05\xff\xff\xff\xff\xff", "sentencepiece cannot read it"),
    ("chatglm2", "tokenizer.model", b"YQ== 0\nYg== 1\n", "sentencepiece cannot read it"),
    ("chatglm2", "tokenizer.model", b"", "sentencepiece cannot read it"),
    ("gpt2", "vocab.json", b"[1]", "holds a list instead of pieces with their ids"),
    ("gpt2", "vocab.json", b'{"a": -1}', "the id of 'a' is -1"),
    ("gpt2", "vocab.json", b'{"a": 0}', "it has no piece for the byte 0x00"),
    ("gpt2", "vocab.json", b'{"a"', r"vocab\.json:1: not valid JSON"),
    ("gpt2", "merges.txt", b"#version: 0.2\n\xc4\xa0 t\n\xc4\xa0 t x\n", "line 3 is not two pieces of vocab.json"),
    ("gpt2", "merges.txt", b"\xff", r"merges\.txt:1: not valid UTF-8"),
    ("gpt2", "added_tokens.json", b'{"[CLS]": 700}', r"neither it nor added_tokens\.json has \[MASK\]"),
    ("gpt2", "added_tokens.json", b'{"[CLS]": 7000000000000}', r"\[CLS\]' is 7000000000000, vocab\.json ends at 699"),
    ("bert", "vocab.txt", b"[PAD]\n[UNK]\na\na\n", "the piece 'a' stands twice in it"),
    ("bert", "vocab.txt", b"[PAD]\na\n", r"it has no \[UNK\]"),
    ("bert", "vocab.txt", b"[PAD]\n[UNK]\na\n", r"neither it nor added_tokens\.json has \[CLS\]"),
    ("bert", SETTINGS, b'{"tokenizer_class": "ChatGLM4Tokenizer"}', "is 'ChatGLM4Tokenizer'; known are"),
    ("bert", SETTINGS, b'{"mask_token": 7}', r"mask_token is 7; it should be a string"),
    ("bert", SETTINGS, b'{"tokenizer_class": [1]}', "tokenizer_class is a list; known are"),
    ("bert", SETTINGS, b'{"additional_special_tokens": 1}', "is 1; it should be a list of strings"),
    ("bert", SETTINGS, b"[]", "holds an empty list instead of an object of settings"),
    ("chatglm", "ice_text.model", b"<0xFF>", "is not icetk's vocabulary"),
    ("chatglm", SETTINGS, b'{"tokenizer_class": "ChatGLMTokenizer", "num_image_tokens": "0"}',
     "num_image_tokens is '0'; it should be 0 or 20000"),
])
def test_damaged_files(tmp_path, kind, name, content, message):
    path = family_folder(kind, tmp_path) / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        open_tokenizer(path.parent)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_vocabulary_of_whole_words(tmp_path):
    path = family_folder("chatglm2", tmp_path) / "tokenizer.model"
    model = ModelProto.FromString(path.read_bytes())
    model.trainer_spec.byte_fallback = False
    kept = [piece for piece in model.pieces if piece.type != ModelProto.SentencePiece.BYTE and (
        piece.type != ModelProto.SentencePiece.NORMAL or "▁" in piece.piece)]
    del model.pieces[:]
    model.pieces.extend(kept)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="no piece of it begins inside a word"):
        open_tokenizer(path.parent)


def test_ids_of_a_vocabulary_are_counted_up(tmp_path):
    path = family_folder("gpt2", tmp_path) / "vocab.json"
    set_in(path, the=5)
    with pytest.raises(UserError, match=r"its \d+ pieces do not have the ids 0 \.\.\. \d+"):
        open_tokenizer(path.parent)


def test_commands_that_the_vocabulary_in_megatrons_style_lacks(tmp_path):
    folder = family_folder("bert", tmp_path)
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"vocab\.txt is not .*: it has no \[MASK\]"):
        open_megatron_tokenizer(folder)
    with pytest.raises(UserError, match=r"holds the tokenizer of ChatGLM-6B; of a GLM in Megatron's style it is"):
        open_megatron_tokenizer(family_folder("chatglm", tmp_path))


def test_a_folder_without_any(tmp_path):
    with pytest.raises(UserError, match=rf"no vocabulary in {re.escape(os.fspath(tmp_path))}: there should be one of "
                                        r"cog-pretrain\.model, .*ice_text\.model, .*--tokenizer-path"):
        open_tokenizer(tmp_path)
