"""Texts while they are made: nothing that was said is taken back, no stop text is let out, no half of a character."""

from hypothesis import given
from hypothesis import strategies as st

from generation.texts import INCOMPLETE, Names, Text
from glm.tokenizers.opening import open_tokenizer
from tests.serving_helper import SMALL

TOKENIZER = open_tokenizer(SMALL / "ice_text.model", 0)
NAMES = Names(TOKENIZER)
ENDS = (TOKENIZER.command("eop"), TOKENIZER.command("eos"))
TOKENS = st.lists(st.integers(0, TOKENIZER.num_tokens - 1) | st.integers(TOKENIZER.num_tokens - 256,
                                                                       TOKENIZER.num_tokens - 1), max_size=20)


def streamed(ids, before="", stops=()):
    text, said = Text(NAMES, ENDS, before, stops), []
    for token in ids:
        text.add(token)
        said.append(text.new())
        if text.is_stopped:
            break
    text.finish()
    return [*said, text.new()]


def whole(ids, before="", stops=()):
    text = Text(NAMES, ENDS, before, stops)
    for token in ids:
        text.add(token)
        if text.is_stopped:
            break
    text.finish()
    return text.new()


@given(TOKENS, st.sampled_from(["", "a", "a "]), st.lists(st.text("aeto .,中", min_size=1, max_size=3), max_size=3))
def test_what_is_streamed_is_what_there_is_in_the_end(ids, before, stops):
    text = whole(ids, before, stops)
    assert "".join(streamed(ids, before, stops)) == text
    assert not any(stop in text for stop in stops)


@given(st.text(max_size=12))
def test_characters_come_whole(text):
    said = streamed(TOKENIZER.encode(text), "a ")
    assert "".join(said) == "".join(streamed(TOKENIZER.encode(text), "a "))
    if INCOMPLETE not in text:
        assert not any(INCOMPLETE in part for part in said)


def test_a_stop_across_tokens_is_held_back_until_it_is_clear():
    ids = TOKENIZER.encode("one two three four")
    assert "".join(streamed(ids, "a", ["two three five"])) == " one two three four"
    assert "".join(streamed(ids, "a", ["wo thr", "three"])) == " one t"


def test_the_blank_in_front_is_said_once():
    ids = TOKENIZER.encode("house")
    assert (whole(ids, "the"), whole(ids, "the "), whole(ids, "")) == (" house", "house", "house")


def test_commands_and_bytes_have_names():
    byte = TOKENIZER.num_tokens - 256
    assert NAMES.token(byte + 0xE4) == "bytes:\\xe4"
    assert NAMES.token(TOKENIZER.command("eop")) == "[eop]" and NAMES.token(TOKENIZER.command("[MASK]")) == "[MASK]"
    assert whole([*TOKENIZER.encode("a"), TOKENIZER.command("[gMASK]"), *TOKENIZER.encode("b")], "x") == " a[gMASK] b"


def test_no_two_alternatives_share_a_name():
    token, = TOKENIZER.encode("a")[-1:]
    ids = [token, 5, token + 1, TOKENIZER.command("eop")]
    names = NAMES.distinct(ids, ids[-1], "")
    assert len(set(names)) == 4 and names[-1] == ""
