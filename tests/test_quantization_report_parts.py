"""The parts of the report: schemes, windows of text, a model that is quantised for a while; and its documentation."""

import re
from pathlib import Path

import pytest
import torch

import glm
from commands.quantization import parse
from glm.spec import is_packed, place_of
from quantization.functional import Scheme
from tests.golden_data import SHAPE, TOKENIZER, TP1, whole_state
from tools.quantizing.measure import windows
from tools.quantizing.schemes import quantized, schemes_of

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = (ROOT / "docs" / "quantization.md").read_text(encoding="utf-8")


def load(**options):
    return glm.load(TP1, tokenizer_path=TOKENIZER / "ice_text.model", **SHAPE, **options)


def test_a_model_is_quantised_for_a_while_only():
    model, _ = load()
    tokens, positions = torch.tensor([[3, 4, 5, 6]]), torch.arange(4)[None]
    before = model.logits(tokens, positions)
    weights = {name: tensor for name, tensor in whole_state().items() if is_packed(name)}
    assert len(weights) == 16
    with quantized(model, weights, Scheme(4, 16)):
        inside = model.logits(tokens, positions)
    loaded, _ = load(bits=4, group_size=16)
    torch.testing.assert_close(inside, loaded.logits(tokens, positions), rtol=1e-4, atol=1e-4)
    assert torch.equal(model.logits(tokens, positions), before) and not torch.equal(inside, before)


def test_groups_that_do_not_divide_are_left_out_unless_they_are_asked_for():
    weights = {"transformer.layers.0.attention.dense.weight": torch.empty(8, 192)}
    assert list(schemes_of(weights, None)) == ["INT8", "INT4", "INT4 g64", "INT4 g32"]
    assert list(schemes_of(weights, [96, 96], groups_of_int8=True)) == ["INT8", "INT8 g96", "INT4", "INT4 g96"]


def test_places_of_weights():
    assert place_of("transformer.layers.12.mlp.dense_4h_to_h.weight") == (12, "mlp.dense_4h_to_h")


class Letters:
    """A tokenizer of characters."""

    def encode(self, text):
        return list(map(ord, text))

    def command(self, name):
        return {"[gMASK]": 1, "sop": 2}[name]


def test_windows_score_every_token_once(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(chr(100 + number) for number in range(100)))
    requests = windows(path, Letters(), 32, 1000)
    scored = [ord for request in requests for ord in request.continuations[0]]
    assert scored == list(range(115, 195))  # all but half a window at the beginning and a rest at the end
    for request in requests:
        first = request.continuations[0][0]
        assert request.context == (*range(first - 15, first), 1)
        assert (request.lead, request.size, request.first_position, request.advance) == (2, 32, 16, 1)
    assert [request.continuations[0][0] for request in windows(path, Letters(), 32, 48)] == [115, 147, 179]
    assert windows(path, Letters(), 512, 1000)[0].size == 96  # a window is no longer than the text


def test_every_argument_is_documented(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    flags = set(re.findall(r"^ +(--[a-z0-9-]+)", capsys.readouterr().out, re.M)) - {"--help"}
    assert flags <= set(re.findall(r"--[a-z0-9-]+", DOCUMENT.partition("What is in the table")[0]))


def test_every_configuration_that_quantises_is_listed():
    listed = set(re.findall(r"configs/\w+\.sh", DOCUMENT))
    assert listed == {f"configs/{path.name}" for path in (ROOT / "configs").iterdir() if "quantiz" in path.read_text()}
