"""What holds for every text and all ids, in every tokenizer of the family."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm.tokenizers.chatglm import ChatGLMTokenizer
from glm.tokenizers.opening import open_megatron_tokenizer, open_tokenizer
from runtime.errors import UserError
from tests.golden_data import family_folder

KINDS = ("chinese", "gpt2", "bert", "roberta", "chatglm", "chatglm2")
CUT = [*KINDS[:-1], "megatron chinese", "megatron gpt2", "megatron bert", "first chatglm"]  # commands are cut out
COMMAND_STRINGS = ("[MASK]", "[gMASK]", "[sMASK]", "[CLS]", "[SEP]", "[PAD]", "[UNK]", "<|endoftext|>", "<s>", "</s>",
                   "<pad>", "<unk>", "<mask>", "<sop>", "<eop>", "<|startofpiece|>", "<|endofpiece|>", "<bos>", "sop")
PLAIN = st.text(st.characters(codec="utf-8", exclude_characters="[<"), max_size=12) | st.sampled_from(
    ["the cat", " it's", "\n", "  ", "\t a", "你好，世界", "ΑΣ", "e\u0301", "\x00", "\ufffd"])
TEXTS = st.lists(PLAIN | st.sampled_from(COMMAND_STRINGS), max_size=6).map("".join)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    at = tmp_path_factory.mktemp("tokenizers")
    folders = {kind: family_folder(kind, at) for kind in KINDS}
    found = {kind: open_tokenizer(folder) for kind, folder in folders.items()}
    found |= {f"megatron {kind}": open_megatron_tokenizer(folders[kind]) for kind in ("chinese", "gpt2", "bert")}
    return found | {"first chatglm": ChatGLMTokenizer(folders["chatglm"], 20000, is_first_revision=True)}


def white_space(tokenizer):
    """Commands that stand for white space, as ChatGLM-6B has them."""
    return {token for name, token in tokenizer.commands.items() if name == "<t>" or name.startswith("<blank_")}


@given(text=TEXTS)
@settings(max_examples=150)
def test_what_is_typed_never_becomes_a_command(tokenizers, text):
    for kind, tokenizer in tokenizers.items():
        ids = tokenizer.encode(text)
        assert not set(ids) & (set(tokenizer.commands.values()) - white_space(tokenizer)), kind
        assert all(0 <= token < tokenizer.num_tokens for token in ids), kind
        assert all(0 <= token < tokenizer.num_tokens for token in tokenizer.encode(text, special_tokens=True)), kind


@given(text=TEXTS)
@settings(max_examples=150)
def test_bytes_come_back_as_they_were(tokenizers, text):
    for kind in ("gpt2", "roberta"):
        assert tokenizers[kind].decode(tokenizers[kind].encode(text)) == text


@pytest.mark.parametrize("kind", CUT)
@given(stretches=st.lists(PLAIN, min_size=2, max_size=4))
@settings(max_examples=60)
def test_stretches_are_what_the_original_encodes_between_masks(tokenizers, kind, stretches):
    tokenizer = tokenizers[kind]
    ids = []
    for stretch in tokenizer.encode_stretches(stretches):
        ids += [*stretch, tokenizer.command("[MASK]")]
    assert ids[:-1] == tokenizer.encode("[MASK]".join(stretches), special_tokens=True)


@given(data=st.data())
@settings(max_examples=150)
def test_any_ids_have_a_text(tokenizers, data):
    for kind, tokenizer in tokenizers.items():
        ids = data.draw(st.lists(st.integers(0, tokenizer.num_tokens + 50), max_size=6), label=kind)
        shown = tokenizer.decode(ids, special_tokens=True)
        assert tokenizer.decode_behind(ids).removeprefix(" ") in (shown, shown.removeprefix(" ")), kind
        hidden = set(tokenizer.commands.values()) - white_space(tokenizer)
        assert tokenizer.decode(ids) == tokenizer.decode([token for token in ids if token not in hidden]), kind
        assert isinstance(tokenizer.detokenize(ids), str)


def test_ids_without_text_and_texts_without_utf8(tokenizers):
    for tokenizer in tokenizers.values():
        assert "\ufffd" in tokenizer.decode([tokenizer.num_tokens + 7])
        for decode in (tokenizer.decode, tokenizer.decode_behind, tokenizer.detokenize):
            with pytest.raises(UserError, match="-1 is no token id"):
                decode([-1])
        with pytest.raises(UserError, match="not valid UTF-8 at character 2"):
            tokenizer.encode("ab\udc80")
        assert tokenizer.encode("") == [] == tokenizer.encode("", special_tokens=True)
        assert tokenizer.decode([]) == "" == tokenizer.detokenize([])


def test_commands_are_shown_by_name_and_words_keep_their_blanks(tokenizers):
    for kind, tokenizer in tokenizers.items():
        ids = [*tokenizer.encode("the"), tokenizer.command("[MASK]"), *tokenizer.encode(" the")]
        assert tokenizer.decode(ids, special_tokens=True).split() in (["the[MASK]", "the"], ["the[MASK]the"]), kind
        assert tokenizer.decode_behind(tokenizer.encode(" the")).lstrip(" ") == "the", kind
