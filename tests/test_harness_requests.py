"""lm-evaluation-harness's questions as token ids: what is scored, what stands around a context. Needs no harness."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.harness_requests import Decoding, Frame, frame_of, packed, split_pair, windows
from generation.params import SamplingParams
from glm.prompt_form import DEFAULT, PromptForm
from runtime.errors import UserError

BIDIRECTIONAL = Frame((), (90, 91), True)  # [gMASK] sop behind a context
CAUSAL = Frame((90, 91), (), True)


def score(frame, context, continuations):
    """The one request for these continuations."""
    (request,), _ = packed(frame, [(context, ids) for ids in continuations], 1000)
    return request


def letters(text):
    """A tokenizer with an id for each letter, but for "ab", which is one piece."""
    return [ord(letter) for letter in text.replace("ab", "\u00e6")]


def ids(text):
    return tuple(letters(text))


@pytest.mark.parametrize(("context", "continuation", "before", "scored"), [
    ("x", "yz", "x", "yz"),
    ("x ", "yz", "x", " yz"),  # blanks at the end go to the continuation
    ("x \n", "y", "x", " \ny"),
    ("", "yz", "", "yz"),
    ("  ", "y", "", "  y"),
    ("xa", "b", "x", "ab"),  # one piece, which the context has as many of: it is scored behind what is before it
    ("a", "b", "", "ab"),
    ("x", "", "x", ""),
    ("", "", "", ""),
    ("x ", "", "x", " "),
])
def test_where_a_continuation_begins(context, continuation, before, scored):
    assert split_pair(letters, context, continuation) == (ids(before), ids(scored))


def test_where_a_continuation_begins_with_a_real_vocabulary(tokenizer):
    encode = tokenizer.encode
    before, scored = split_pair(encode, "The sky is", " blue")
    assert list(before) == encode("The sky is") and [*before, *scored] == encode("The sky is blue")
    assert split_pair(encode, "The sky is ", "blue") == split_pair(encode, "The sky is", " blue")
    whole = tuple(encode("很好"))
    assert len(whole) == len(encode("很")) and split_pair(encode, "很", "好") == (whole[:-1], whole[-1:])


def test_windows_of_a_text():
    assert windows(range(10), 5, 3) == [((), (0, 1, 2, 3, 4)), ((3, 4), (5, 6, 7)), ((6, 7), (8, 9))]
    assert windows(range(5), 5, 3) == [((), (0, 1, 2, 3, 4))]
    assert windows([], 5, 3) == []


@given(st.integers(4, 40), st.integers(0, 200))
def test_windows_score_every_token_once_and_never_exceed_the_model(most, length):
    text, first, step = range(length), most - 1, most // 2
    found = windows(text, first, step)
    assert [token for _, scored in found for token in scored] == list(text)
    for number, (context, scored) in enumerate(found):
        assert len(context) == (0 if number == 0 else most - 1 - step) and scored
        assert score(BIDIRECTIONAL, context, [scored]).length <= most


def test_a_context_that_sees_itself_whole():
    request = score(BIDIRECTIONAL, (1, 2, 3), [(4, 5), (6,)])
    assert (request.context, request.lead, request.causal) == ((1, 2, 3, 90), 91, False)
    assert (request.first_position, request.advance) == (4, 1)  # behind the mask, counting on
    at_the_mask = score(Frame((), (92, 91), False), (1, 2, 3), [(4, 5)])
    assert (at_the_mask.first_position, at_the_mask.advance) == (3, 0)


def test_a_context_that_is_read_from_left_to_right():
    request = score(CAUSAL, (1, 2, 3), [(4, 5)])
    assert (request.context, request.lead, request.causal) == ((90, 91, 1, 2), 3, True)
    assert (request.first_position, request.advance) == (4, 1)
    empty = score(CAUSAL, (), [(4, 5)])
    assert (empty.context, empty.lead, empty.first_position) == ((90,), 91, 1)
    in_its_blank = score(Frame((95, 90, 91), (), False), (1, 2, 3), [(4, 5)])  # GLM: [CLS] [gMASK] sop context
    assert (in_its_blank.context, in_its_blank.lead, in_its_blank.opened) == ((95, 90, 91, 1, 2), 3, 3)
    assert (in_its_blank.first_position, in_its_blank.advance, in_its_blank.causal) == (1, 0, False)


@pytest.mark.parametrize("frame", [BIDIRECTIONAL, CAUSAL])
def test_room_is_what_may_be_fed(frame):
    room = frame.room(20, 5)
    assert score(frame, (1,) * room, [(2,) * 5]).length == 20


class Commands:
    def __init__(self):
        self.commands = {"[MASK]": 92, "[gMASK]": 90, "sop": 91, "eop": 94, "eos": 93, "ENC": 95}

    def command(self, name):
        return self.commands[name]

    def encode_stretches(self, stretches):
        return [[] for _ in stretches]


@pytest.mark.parametrize(("form", "options", "frame"), [
    (DEFAULT, {}, Frame((), (90, 91), True)),  # GLM-130B
    (DEFAULT, {"mask": "[MASK]"}, Frame((), (92, 91), False)),
    (DEFAULT, {"unidirectional": True}, Frame((90, 91), (), True)),
    (PromptForm(begin=("ENC",), advancing=(), no_end_after=()), {}, Frame((95,), (90, 93, 91), False)),  # GLM
    (PromptForm(begin=("ENC",), advancing=()), {"unidirectional": True}, Frame((95, 90, 91), (), False)),
    (PromptForm(("[MASK]", "[gMASK]"), advancing=()), {}, Frame((), (90, 91), False)),  # ChatGLM-6B
    (PromptForm(("[gMASK]",), ("[gMASK]", "sop"), is_causal=True), {}, Frame((90, 91), (), True)),  # ChatGLM2-6B
])
def test_what_stands_around_a_context(form, options, frame):
    assert frame_of(form, Commands(), **options) == frame


@pytest.mark.parametrize(("form", "options", "says"), [
    (DEFAULT, {"mask": "gMASK"}, "mask is 'gMASK'; allowed: .gMASK. and .MASK."),
    (DEFAULT, {"mask": "[MASK]", "unidirectional": True}, "allowed: .gMASK. with unidirectional"),
    (PromptForm(("[gMASK]",), is_causal=True), {"mask": "[MASK]"}, "reads from left to right"),
    (PromptForm(("[MASK]",)), {}, "fills no .gMASK."),
])
def test_masks_that_are_none(form, options, says):
    with pytest.raises(UserError, match=says):
        frame_of(form, Commands(), **options)


def test_equal_contexts_share_a_sequence():
    pairs = [((1,), (2, 3)), ((4,), (5,)), ((1,), (6,)), ((1,), (2, 3)), ((4,), (7, 8))]
    requests, owners = packed(BIDIRECTIONAL, pairs, 100)
    assert [request.continuations for request in requests] == [((2, 3), (6,)), ((5,), (7, 8))]
    assert owners == [(0, 0), (1, 0), (0, 1), (0, 0), (1, 1)]
    assert [len(request.continuations) for request in packed(BIDIRECTIONAL, pairs, 2)[0]] == [1, 1, 1, 1]


def test_how_an_answer_is_decoded():
    assert Decoding.of({}, 256) == Decoding((), 256, SamplingParams(top_k=1, max_gen_length=256), None)
    assert Decoding.of({"until": "\n", "max_gen_toks": 7, "temperature": 0.0, "do_sample": False, "num_beams": 1,
                        "top_p": None}, 256) == Decoding(("\n",), 7, SamplingParams(top_k=1, max_gen_length=7), None)
    assert Decoding.of({"until": ["a", "", "b"]}, 9).stops == ("a", "b")
    assert Decoding.of({"temperature": 0.5}, 9).params.top_k == 1  # nothing is drawn without do_sample
    assert Decoding.of({"do_sample": True, "temperature": 0}, 9).params.top_k == 1
    drawn = Decoding.of({"do_sample": True, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "seed": 3,
                         "max_new_tokens": 4}, 9)
    assert drawn.params == SamplingParams(0.5, 5, 0.9, seed=3, max_gen_length=4) and drawn.seed == 3


@pytest.mark.parametrize(("options", "says"), [
    ({"max_gen_tok": 3}, "unknown option of generation 'max_gen_tok' .did you mean 'max_gen_toks'"),
    ({"num_beams": 4}, "num_beams is 4; .*without beam search"),
    ({"do_sample": True, "temperature": -1}, "temperature -1: must be greater than 0"),
    ({"max_gen_toks": 0}, "must be a whole number of at least 1"),
    ({"until": [3]}, "until is a list; it must be a text or a list of texts"),
])
def test_options_of_generation_that_are_refused(options, says):
    with pytest.raises(UserError, match=says):
        Decoding.of(options, 256)
