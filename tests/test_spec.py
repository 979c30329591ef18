"""The table of a GLM's tensors, held to what the model, the kernels and published files have."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm import spec
from glm.config import PRESETS, ModelConfig
from glm.model import GLM
from glm.sat import layer_weights
from glm.spec import Cut, Piece, cut_of, is_packed, layer_of, pieces, place_of
from kernels.layer import LayerWeights
from runtime import parallel
from tests.parallel_helper import run_ranks
from tests.test_imports import FLOORS

ROOT = Path(__file__).resolve().parent.parent
QKV = "transformer.layers.3.attention.query_key_value"


@pytest.mark.parametrize("name", PRESETS)
def test_the_table_is_what_a_model_holds(name):
    config = ModelConfig.from_name(name).override(num_layers=3)
    model = GLM(config, device="meta").state_dict()
    assert {name: part.shape for name, part in spec.expected(config).items()} == {
        name: tuple(tensor.shape) for name, tensor in model.items()}


def _divided(degree):
    """Every preset, with a single layer, that so many ranks divide."""
    configs = [ModelConfig.from_name(name).override(num_layers=1) for name in PRESETS]
    return [config for config in configs if spec.undivided(config, degree) is None]


def _shapes_on_a_rank(degree):
    parallel.start(degree)
    return [{name: tuple(tensor.shape) for name, tensor in GLM(config, device="meta").state_dict().items()}
            for config in _divided(degree)]


@pytest.mark.parametrize("degree", [2, *(pytest.param(degree, marks=pytest.mark.slow) for degree in (4, 8))])
def test_the_table_is_what_each_rank_holds(degree, tmp_path):
    expected = [{name: part.shape for name, part in spec.expected(config, degree).items()}
                for config in _divided(degree)]
    assert len(expected) > 5
    assert run_ranks(_shapes_on_a_rank, degree, tmp_path, degree) == [expected] * degree


def test_a_layer_has_the_kernels_order():
    config = ModelConfig.from_name("glm-small")
    layer = GLM(config, device="meta").transformer.layers[0]
    shapes = [tuple(part.shape) for part in layer_weights(layer)]
    assert [part.shape for part in spec.layer_parts(config).values()] == shapes
    assert len(spec.layer_parts(config)) == len(LayerWeights._fields)


def test_how_a_name_is_described():
    config = ModelConfig.from_name("glm-130b")

    def describe(name):
        return spec.describe(name, config)

    assert describe(f"{QKV}.weight") == spec.Tensor(
        "attention.query_key_value.weight", ("qkv", "hidden"), Cut.ROWS, packs=True)
    assert describe(f"{QKV}.weight_scale") == describe(f"{QKV}.weight")
    assert describe("input_layernorm.weight") is describe("transformer.layers.0.lm_head.weight") is None
    assert is_packed(f"{QKV}.weight") and not is_packed(f"{QKV}.weight_scale") and not is_packed(f"{QKV}.bias")
    assert describe("transformer.layers.0.mlp.experts.weight") is describe("lm_head.weight") is None
    assert describe("transformer.layers.0.input_layernorm.weight_scale") is None
    assert cut_of("transformer.layers.0.attention.dense.bias") is cut_of("unheard.of") is Cut.WHOLE
    assert cut_of("transformer.layers.0.attention.dense.weight_scale") is Cut.COLUMNS
    assert layer_of(f"{QKV}.weight") == 3 and layer_of(spec.WORD_EMBEDDINGS) is None
    assert place_of(f"{QKV}.weight") == (3, "attention.query_key_value")


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 5))
def test_pieces_of_all_ranks_make_up_the_whole(sources, targets, unit):
    size = sources * targets * unit
    own = size // sources
    found = [piece.source * own + place for rank in range(targets) for piece in pieces(size, sources, targets, rank)
             for place in range(piece.start, piece.stop)]
    assert found == list(range(size))


def test_pieces_by_hand():
    assert list(pieces(24, 2, 3, 1)) == [Piece(0, 8, 12), Piece(1, 0, 4)]


@pytest.mark.parametrize("sources", [1, 2, 4])
def test_blocks_are_cut_each_by_itself(sources):
    """ChatGLM2's q, k and v, of which two groups have keys and values: from any number of parts each of four ranks gets
    its heads and their group."""
    config = ModelConfig.from_name("chatglm2-6b").override(num_attention_heads=8, hidden_size=32)
    q, k, v = ([*range(begin, begin + rows)] for begin, rows in ((0, 32), (32, 8), (40, 8)))

    def parts(degree):
        groups = min(degree, 2)
        return [q[r * 32 // degree:(r + 1) * 32 // degree]
                + [row for rows in (k, v) for row in rows[r * groups // degree * 8 // groups:][:8 // groups]]
                for r in range(degree)]

    found = [[parts(sources)[source][place] for source, start, stop in
              spec.slices_of(f"{QKV}.weight", config, sources, 4, rank) for place in range(start, stop)]
             for rank in range(4)]
    assert found == parts(4)
    assert {len(part) for part in found} == {spec.part(spec.describe(f"{QKV}.weight", config), config, 4).shape[0]}


def test_a_divided_model():
    assert spec.undivided(ModelConfig.from_name("chatglm2-6b"), 32) is None  # sixteen ranks have the same keys
    config = ModelConfig.from_name("glm-130b")
    assert spec.undivided(config, 8) is None and spec.undivided(config, 7) == "num_attention_heads"


def test_the_table_needs_no_torch():
    code = "import sys, glm.spec, glm.families; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=600).returncode == 0


def test_tensors_are_named_in_the_tables_only():
    allowed = {"glm/spec.py", "glm/sat.py"}
    words = ("query_key_value", "dense_h_to_4h", "dense_4h_to_h", "attention.dense", "post_attention_layernorm",
             "rotary_emb", "transformer.word_embeddings.weight\"", "transformer.layers.{")
    found = {str(path.relative_to(ROOT)) for folder in FLOORS
             for path in (ROOT / folder).rglob("*.py") if any(word in path.read_text("utf-8") for word in words)}
    found = {name for name in found if not name.startswith("glm/families/")}
    assert found <= allowed, sorted(found - allowed)
