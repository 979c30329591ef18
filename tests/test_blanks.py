"""Filling as a state machine: no model, no clock, no terminal; text in, text out."""

import subprocess
import sys
from pathlib import Path

import pytest

from generation import BeamParams, SamplingParams
from generation.blanks import Filling, Result, split
from runtime.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


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
