"""tools/benchmark.py beside other engines: what is asked of them, and in which order."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch

from glm.config import ModelConfig
from runtime.errors import UserError
from tools.benchmarking import pairs, peer_openvino, peers
from tools.benchmarking.own import shape_of
from tools.benchmarking.rates import Bandwidth

SMALL = ModelConfig(num_layers=2, hidden_size=8, num_attention_heads=2, inner_hidden_size=12, vocab_size=20,
                    max_sequence_length=8)
TINY = shape_of(SMALL)


class Counted:
    """An engine that only notes what it is asked for."""

    precision, shape, dtype, bytes_per_weight = "fp32", TINY, torch.float32, 4

    def __init__(self):
        self.asked = []

    def read(self, tokens):
        self.asked.append(tuple(tokens.shape))

    def step(self):
        self.asked.append("step")


def test_engines_are_measured_by_one_loop(monkeypatch):
    engine = Counted()
    monkeypatch.setattr(peers, "engines", lambda shape, arguments: [engine])
    monkeypatch.setitem(peers.ENGINES, "transformers", ([], "", peers.__name__))
    arguments = SimpleNamespace(device="cpu", prefill=[8], contexts=[4], steps=3, repeats=2)
    read, decoded = peers.measure("transformers", arguments, TINY, Bandwidth("cpu", 1 << 16))
    assert (read.kind, read.tokens, read.timing.repeats) == ("prefill", 8, 2)
    assert (decoded.kind, decoded.tokens, decoded.width, decoded.timing.repeats) == ("decode", 4, 1, 3)
    assert read.weight_bytes == decoded.weight_bytes == 4 * TINY.parameters
    assert engine.asked == [(1, 8)] * 3 + [(1, 4)] + ["step"] * 5  # one prefill and two steps do not count
    arguments.device = "cuda"
    monkeypatch.setitem(peers.ENGINES, "openvino", ([], "", peers.__name__))
    with pytest.raises(peers.Missing, match="measured on CPUs only"):
        next(peers.measure("openvino", arguments, TINY, None))


def test_pairs_take_turns_and_are_compared_round_by_round():
    turns, ours, theirs = [], iter([9.0, 10.0, 30.0, 12.0]), iter([9.0, 5.0, 10.0, 24.0])
    rates = pairs.in_turn(lambda: turns.append("ours") or next(ours), lambda: turns.append("theirs") or next(theirs), 3)
    assert rates == ((10.0, 5.0), (30.0, 10.0), (12.0, 24.0))
    assert turns == ["theirs", "ours", "ours", "theirs"] * 2
    heads, rows = pairs.table([pairs.Pair("INT4, rows", "Q4_0", "decode 1", 200.0, 190.0, rates)])
    assert dict(zip(heads, rows[0], strict=True))["least - most"] == "0.50 - 3.00"
    assert rows[0][5:8] == ["10.0", "190", "2.00"] and rows[1][1] == "decode, geometric mean" and rows[1][7] == "2.00"


def test_a_pair_is_measured():
    """The other engine in another process."""
    arguments = SimpleNamespace(against="transformers", dtype=["fp32"], prefill=[4], contexts=[2], steps=2, rounds=1,
                                threads=1)
    found = list(pairs.measure(arguments, SMALL))
    assert [(pair.precision, pair.work) for pair in found] == [("fp32", "prefill 4"), ("fp32", "decode 2")]
    assert all(ours > 0 and theirs > 0 for pair in found for ours, theirs in pair.rates)
    missing = SimpleNamespace(**{**vars(arguments), "against": "llama.cpp"})
    if importlib.util.find_spec("llama_cpp") is None:
        with pytest.raises(UserError, match="llama.cpp: the package llama_cpp and gguf is not installed"):
            next(pairs.measure(missing, SMALL))


@pytest.mark.parametrize("packs, precisions", [(True, ["fp32", "INT8", "INT4"]), (False, ["fp32"])])
def test_openvino_packs_where_its_packer_is_installed(monkeypatch, packs, precisions):
    monkeypatch.setattr(peer_openvino, "find_spec", lambda name: (packs and name == "nncf") or None)
    monkeypatch.setattr(peer_openvino, "compiled", lambda shape, precision, arithmetic: (arithmetic, shape.parameters))
    found = list(peer_openvino.engines(TINY, SimpleNamespace(dtype=["fp32"])))
    assert [engine.precision for engine in found] == precisions
    assert {engine.request for engine in found} == {"fp32"} and found[-1].bytes_per_weight == 1
    assert all(precision in pairs.PACKED for precision in precisions[1:])  # each beside ours
