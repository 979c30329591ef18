"""An answer's text: the prompt as it was typed, joined with what is filled in; with golden's tokenizer."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generation.blanks import split
from generation.joining import Filled, filled, joined
from generation.masks import MASK_PATTERN
from generation.streaming import AnswerStream
from glm.tokenizers.opening import open_tokenizer
from tests.golden_data import family_folder


def text_of(tokenizer, prompt: str, *answers: str | list[int]) -> str:
    """answers: texts as the tokenizer encodes them by themselves (with a blank in front), or ids."""
    ids = [answer if isinstance(answer, list) else tokenizer.encode(answer) for answer in answers]
    return joined(split(prompt, tokenizer).typed, [filled(blank, tokenizer) for blank in ids])


@pytest.mark.parametrize("prompt, answers, text", [
    ("The sky is [MASK].", ["blue"], "The sky is blue."),
    ("The sky is[MASK] .", ["blue"], "The sky is blue ."),  # as typed
    ("[MASK]'s  hat", ["Tom"], "Tom's  hat"),
    ("Once upon a time", ["there was"], "Once upon a time there was"),
    ("Once upon a time ", ["there was"], "Once upon a time there was"),
    ("Once upon a time\n", ["there was"], "Once upon a time\nthere was"),
    ("从前有一个[MASK]。", ["国王"], "从前有一个国王。"),
    ("我用[MASK]系统", ["Linux"], "我用Linux系统"),
    ("I like[MASK]", ["北京"], "I like北京"),
    ("나는[MASK]", ["학생"], "나는 학생"),
    ("话说宝玉听了，（笑道）：[sMASK]", ["好！"], "话说宝玉听了，（笑道）：好!"),
    ("    def f(x):\treturn [MASK]\r", ["x"], "    def f(x):\treturn x\r"),
    ("a:[gMASK]", ["\tb\n    c"], "a:\tb\n    c"),
    ("He said (“[MASK]”)", ["yes"], "He said (“yes”)"),
    ("The sky is[MASK]", [", they say"], "The sky is, they say"),
    ("[MASK][MASK]", ["red", "car"], "red car"),
    ("a [MASK] b [MASK]", ["", ""], "a  b "),
    ("ﬁne [sMASK] [MASK] [gMASK]", ["x"], "ﬁne [sMASK] x [gMASK]"),
])
def test_texts(tokenizer, prompt, answers, text):
    assert text_of(tokenizer, prompt, *answers) == text


def test_a_piece_without_a_blank_goes_on_with_the_word(tokenizer):
    assert text_of(tokenizer, "unbeliev[MASK]", tokenizer.encode("able", add_dummy_prefix=False)) == "unbelievable"
    assert text_of(tokenizer, "x = [MASK]", tokenizer.encode("    y", add_dummy_prefix=False)) == "x =     y"


def test_a_blank_before_a_word_that_did_not_come(tokenizer):
    blank = tokenizer.encode("天")[:1]
    assert tokenizer.decode_behind(blank) == " "
    twice = [*tokenizer.encode("me"), *blank, *blank]
    assert text_of(tokenizer, "Sit by [MASK], [MASK]", twice, blank) == "Sit by me, "
    assert text_of(tokenizer, "a[gMASK]", [*tokenizer.encode("b"), *tokenizer.encode("  ")[1:]]) == "a b  "


def test_commands_that_are_generated_are_shown_by_name(tokenizer):
    ids = [tokenizer.command("[MASK]"), *tokenizer.encode("b"), tokenizer.command("eod")]
    assert filled(ids, tokenizer).text == "[MASK] b<eod>"


PIECES = st.lists(st.sampled_from([
    "[MASK]", "[sMASK]", "[gMASK]", "a", " ", "    ", "\t", "，", "(", ".", "天", "\n", "\r"]))
BLANKS = st.lists(st.sampled_from([
    "word", ".", "天气", "  ", " ", "\n", "\t", "a b", "", "\N{GRINNING FACE}", "”", "("]), max_size=4)


@settings(max_examples=150)
@given(parts=PIECES, contents=st.lists(st.tuples(BLANKS, st.booleans()), min_size=20, max_size=20))
def test_nothing_is_added_to_the_prompt_but_the_blanks_and_a_stream_shows_the_same(tokenizer, parts, contents):
    text = "".join(parts)
    prompt = split(text, tokenizer)
    if prompt.num_blanks > len(contents):
        return
    ids = [[token for part in blank for token in tokenizer.encode(part, add_dummy_prefix=prefix)]
           for blank, prefix in contents[:prompt.num_blanks]]
    blanks = [filled(blank, tokenizer) for blank in ids]
    answer = joined(prompt.typed, blanks)

    masks = [mask for mask in MASK_PATTERN.findall(text) if mask == prompt.kind] or [""]
    assert "".join(piece + mask for piece, mask in zip(prompt.typed, [*masks, ""], strict=True)) == text
    rest = answer
    for piece, blank in zip(prompt.typed, [*blanks, None], strict=True):
        assert rest.startswith(piece)
        rest = rest[len(piece):]
        if blank is not None:
            rest = rest if rest.startswith(blank.text) else rest.removeprefix(" ")
            assert rest.startswith(blank.text)
            rest = rest[len(blank.text):]
    assert rest == ""

    shown = []
    stream = AnswerStream(prompt, tokenizer, shown.append, colour=False)
    for number, blank in enumerate(ids):
        for token in [*blank, tokenizer.command("eop")]:
            stream.add(number, token)
    stream.finish()
    assert "".join(shown) == answer


@pytest.mark.parametrize("kind, answer, expected", [
    ("gpt2", " the cat", ("the cat", True)), ("gpt2", "the cat", ("the cat", False)),
    ("gpt2", "    x", ("    x", False)), ("gpt2", " the ", ("the", True)),
    ("bert", "the cat", ("the cat", True)), ("chinese", "the cat", ("the cat", True)),
    ("chatglm2", "the cat", ("the cat", True)),
])
def test_vocabularies_tell_where_a_word_begins_in_ways_of_their_own(tmp_path, kind, answer, expected):
    tokenizer = open_tokenizer(family_folder(kind, tmp_path))
    assert filled(tokenizer.encode(answer), tokenizer) == Filled(*expected)
