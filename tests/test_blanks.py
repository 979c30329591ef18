"""Masks, filling as a state machine, and the answer's text: no model, no clock, no terminal; text in, text out."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generation import BeamParams, SamplingParams, fill_blanks
from generation.blanks import (
    MASK_PATTERN,
    Filled,
    Filling,
    Result,
    fault,
    filled,
    joined,
    left_over,
    meant_for_a_mask,
    note_on_left_over,
    split,
)
from generation.params import Options
from generation.session import AnswerStream, Session
from glm.prompt_form import PromptForm
from glm.tokenizers.opening import open_tokenizer
from runtime import parallel
from runtime.errors import UserError
from tests.golden_data import family_folder
from tests.test_fill import scripted

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("text, kind, others", [
    ("a", "[gMASK]", []),
    ("a [MASK] b [MASK]", "[MASK]", []),
    ("I like [MASK] and then [gMASK]", "[MASK]", ["[gMASK]"]),
    ("[sMASK] a [gMASK] b [sMASK]", "[sMASK]", ["[gMASK]"]),
    ("[gMASK] [sMASK] [MASK]", "[MASK]", ["[gMASK]", "[sMASK]"]),
])
def test_one_kind_is_filled(text, kind, others):
    assert (PromptForm().kind_of(text), left_over(text)) == (kind, others)


@pytest.mark.parametrize("form, text", [
    (PromptForm(masks=("[MASK]",)), "a [MASK] and [gMASK]"),  # of a vocabulary without it
    (PromptForm(("[MASK]", "[gMASK]")), "a [MASK] and [sMASK]"), (PromptForm(is_causal=True), "a [MASK] and [gMASK]"),
])
def test_no_note_on_masks_that_the_family_refuses(form, text):
    """What is wrong is said by the error alone."""
    assert note_on_left_over(text, form) is None and form.refused(text)


@pytest.mark.parametrize("written, meant", [
    ("[MASKS]", "[MASK]"), ("[BLANK]", "[MASK]"), ("<mask>", "[MASK]"), ("[MASK1]", "[MASK]"), ("[mask]", "[MASK]"),
    ("[XMASK]", "[MASK]"), ("[Mask]", "[MASK]"), ("[SMASK]", "[sMASK]"), ("[sMask]", "[sMASK]"), ("[GMASK]", "[gMASK]"),
    ("[g_MASK]", "[gMASK]"), ("[MASK_2]", "[MASK]"), ("[MASK 2]", "[MASK]"), ("[ MASK ]", "[MASK]"),
    ("[MASK ]", "[MASK]"), ("<MASK>", "[MASK]"),
    ("<|mask|>", "[MASK]"), ("<blank>", "[MASK]"), ("[blank]", "[MASK]"), ("【MASK】", "[MASK]"),
    ("［sMASK］", "[sMASK]"), ("[ＭＡＳＫ]", "[MASK]"), ("［ｇＭＡＳＫ］", "[gMASK]"), ("＜mask＞", "[MASK]"),
    ("[MAKS]", "[MASK]"), ("[MASKED]", "[MASK]"), ("<extra_id_0>", "[MASK]"),
])
@pytest.mark.parametrize("text", ["{}", "The sky is {}.", "天气很{}。", "天气{}（见下文）", "[MASK] and {}"])
def test_what_was_meant_for_a_mask(text, written, meant):
    assert meant_for_a_mask(text.format(written)) == (written, meant)
    assert fault(text.format(written)).startswith(f"unknown mask {written}, did you mean {meant}?; allowed: [MASK], ")


@pytest.mark.parametrize("text", [
    "[MASK]", "[sMASK][gMASK]", "[[MASK]]", "x[MASK]", "[1]", "[sic]", "[Note]", "[...]", "[TASK]", "[MARK]", "[ASK]",
    "[unmask]", "[MASS]", "[masked]", "[face mask]", "MASK", "mask", "(MASK)", "[MA]", "<b>", "a < mask > b",
    "loss[mask] = 0", "x[0][mask]", "f(x)[mask]", "std::vector<Mask> v", "[mask](https://example.org)",
    "<mask id='a'>", "<mask></mask>", "[BLANK_AUDIO]",
    "____", "[]", "[applause]", "<think>", "[blank page]", "[MASK",
])
def test_what_is_ordinary_text(text):
    assert meant_for_a_mask(text) is None and fault(text) is None


def test_the_other_kinds_stay_as_typed_and_are_told_of_once(tokenizer):
    model = scripted(tokenizer, "tea")
    prompt = "I like [MASK] and then [gMASK]"
    assert fill_blanks(model, tokenizer, [prompt], SamplingParams(top_k=1))[0].text == "I like tea and then [gMASK]"
    parallel.start(1)
    lines, written, notes = [prompt, prompt, "stop"], [], []
    options = Options().changed(top_k=1)
    Session(model, tokenizer, options, lambda: lines.pop(0), written.append, notes.append, False).run()
    assert "".join(written) == "I like tea and then [gMASK]\n" * 2
    assert [note for note in notes if note.startswith("note: ")] == [
        "note: where a prompt has masks of several kinds, one kind is filled: here [MASK]; [gMASK] stays as it is"]


def begun(text, tokenizer, params=SamplingParams(), most=64):  # noqa: B008 (frozen)
    return Filling(split(text, tokenizer), params, 7, most, (tokenizer.command("eop"), tokenizer.command("eos")))


def test_two_blanks_from_left_to_right(tokenizer):
    filling = begun("the [MASK] of the [MASK] house", tokenizer)
    mask, sop, end = tokenizer.command("[MASK]"), tokenizer.command("sop"), tokenizer.command("eop")
    first = filling.wanted()
    assert first.context.count(mask) == 2 and first.context[-1] == sop
    assert first.context[first.shared_position] == mask and mask not in first.context[:first.shared_position]
    old, garden = tokenizer.encode("old"), tokenizer.encode("garden")
    after = filling.take([([*garden, end], None), ([*old, end], None)], tokenizer)
    assert isinstance(after, Filling) and after.done == (tuple(garden),) and filling.done == ()
    second = after.wanted()
    assert second.context.count(mask) == 1 and second.limit == 64 - len(second.context)
    assert second.seed[:2] == (7, 1) and second.seed[2:] == first.seed[2:]
    result = after.take([([*old, end], -1.5), (old, -2.0)], tokenizer)
    assert isinstance(result, Result) and result.text == "the garden of the old house"
    assert result.blanks == ["garden", "old"] and result.finish_reason == "stop"
    assert [beam.score for beam in result.beams] == [-1.5, -2.0] and result.beams[0].blank_ids == [garden, old]
    assert result.beams[0].ids == [*second.context, *old, end] and result.input_ids == first.context


def test_a_blank_that_is_cut_off_anywhere_is_told_of(tokenizer):
    old, end = tokenizer.encode("old"), tokenizer.command("eop")
    after = begun("the [MASK] of the [MASK]", tokenizer).take([(old, None)], tokenizer)
    assert after.take([([*old, end], None)], tokenizer).finish_reason == "length"


def test_a_long_text_counts_its_positions(tokenizer):
    assert begun("the house", tokenizer).wanted().shared_position is None
    assert begun("the [sMASK] house", tokenizer).wanted().shared_position == len(tokenizer.encode("the"))


@pytest.mark.parametrize("params, limit", [
    (SamplingParams(), 64), (SamplingParams(max_gen_length=3), 3), (BeamParams(out_seq_length=20), 20)])
def test_limits(tokenizer, params, limit):
    wanted = begun("the house", tokenizer, params).wanted()
    assert wanted.limit == (limit if params.max_gen_length else limit - len(wanted.context))


def test_no_room(tokenizer):
    with pytest.raises(UserError, match=r"text too long: the prompt has \d+ tokens, the model takes 4 at most"):
        begun("the old house at the river", tokenizer, most=4).wanted()
    with pytest.raises(UserError, match=r"out_seq_length is 5; raise it \(to 64 at most\) or shorten the prompt"):
        begun("the old house at the river", tokenizer, SamplingParams(out_seq_length=5)).wanted()


def test_it_needs_no_torch():
    code = "import sys, generation.blanks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=600).returncode == 0


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
    stream = AnswerStream(prompt, tokenizer, shown.append, False, [tokenizer.command("eop")])
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
