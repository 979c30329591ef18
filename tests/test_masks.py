"""Which masks of a prompt are filled, which stay, and what was meant for one and is none."""

import pytest

from generation import SamplingParams, fill_blanks
from generation.interactive import Session
from generation.masks import kind_of, left_over, meant_for_a_mask
from generation.options import Options
from generation.prompts import fault
from runtime import parallel
from tests.test_infill import scripted


@pytest.mark.parametrize("text, kind, others", [
    ("a", "[gMASK]", []),
    ("a [MASK] b [MASK]", "[MASK]", []),
    ("I like [MASK] and then [gMASK]", "[MASK]", ["[gMASK]"]),
    ("[sMASK] a [gMASK] b [sMASK]", "[sMASK]", ["[gMASK]"]),
    ("[gMASK] [sMASK] [MASK]", "[MASK]", ["[gMASK]", "[sMASK]"]),
])
def test_one_kind_is_filled(text, kind, others):
    assert (kind_of(text), left_over(text)) == (kind, others)


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
    Session(model, tokenizer, Options(top_k=1), lambda: lines.pop(0), written.append, notes.append, False).run()
    assert "".join(written) == "I like tea and then [gMASK]\n" * 2
    assert [note for note in notes if note.startswith("note: ")] == [
        "note: where a prompt has masks of several kinds, one kind is filled: here [MASK]; [gMASK] stays as it is"]
