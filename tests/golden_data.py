"""The golden checkpoints and what can be derived from them: shapes, tensor-parallel splits, the quantised files."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy
import torch
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from glm.checkpoint import shard_name
from glm.shard import read_shard

GOLDEN = Path(__file__).parent / "golden"
TOKENIZER = GOLDEN / "tokenizer"
FAMILY_TOKENIZERS = GOLDEN / "family" / "tokenizers"
TP1 = GOLDEN / "checkpoints" / "tp1"
ITERATION = "49300"
SHAPE = {
    "num_layers": 4,
    "hidden_size": 64,
    "num_attention_heads": 8,
    "inner_hidden_size": 176,
    "vocab_size": 23552,
    "max_sequence_length": 512,
    "rotary_table": "half_inv_freq",
}


def whole_state():
    return dict(read_shard(TP1 / ITERATION / shard_name(0)).tensors)


def split_state(state, degree):
    """One state dict -> one for every tensor-parallel rank, as GLM-130B's files are split."""
    parts = [{} for _ in range(degree)]
    for name, tensor in state.items():
        for part, piece in zip(parts, _split(name, tensor, degree), strict=True):
            part[name] = piece.clone()
    return parts


def _split(name, tensor, degree):
    if "mlp.dense_h_to_4h" in name:  # each rank has its part of both halves of GeGLU
        first, second = (half.chunk(degree) for half in tensor.chunk(2))
        return [torch.cat(pair) for pair in zip(first, second, strict=True)]
    if "word_embeddings" in name or "query_key_value" in name:
        return tensor.chunk(degree)
    if name.endswith(("attention.dense.weight", "mlp.dense_4h_to_h.weight")):
        return tensor.chunk(degree, dim=1)
    return [tensor] * degree


def quantized_parts(bits):
    """The two shards of golden's tp2_int8 or tp2_int4, as the original quantised them."""
    parts = split_state(whole_state(), 2)
    with numpy.load(GOLDEN / "checkpoints" / f"tp2_int{bits}.npz") as arrays:
        for key in arrays.files:
            rank, name = key.split("/")
            parts[int(rank)][name] = torch.from_numpy(arrays[key])
    return parts


def write_checkpoint(folder, parts):
    """State dicts -> a checkpoint folder in SAT's layout."""
    (folder / ITERATION).mkdir(parents=True)
    for rank, part in enumerate(parts):
        torch.save({"module": part}, folder / ITERATION / shard_name(rank))
    (folder / "latest").write_text(ITERATION)
    return folder


def digest(tensor):
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]


def split_digests():
    """{degree as text: [{tensor name: digest} of each rank]} of the original's own splits."""
    return json.loads((GOLDEN / "checkpoints" / "split_digests.json").read_text())


def logit_cases():
    """The descriptions of golden's forward passes."""
    return json.loads((GOLDEN / "logits.json").read_text(encoding="utf-8"))["cases"]


def logit_arrays(name):
    """Inputs and results of one golden forward pass."""
    with numpy.load(GOLDEN / "logits.npz") as arrays:
        return {key.removeprefix(name + "/"): arrays[key] for key in arrays.files if key.startswith(name + "/")}


def family_folder(kind, at):
    """A folder with the golden tokenizer of a kind of GLM or ChatGLM, as the originals read it: `at`/`kind`.

    The vocabularies of Chinese GLM and of ChatGLM-6B are kept without their table of characters: it is the same one.
    """
    folder = shutil.copytree(FAMILY_TOKENIZERS / kind, Path(at) / kind)
    for name in ("cog-pretrain.model", "ice_text.model"):
        if (folder / name).exists():
            table = ModelProto.FromString((TOKENIZER / "ice_text.model").read_bytes()).normalizer_spec
            added = ModelProto()
            added.normalizer_spec.precompiled_charsmap = table.precompiled_charsmap
            (folder / name).write_bytes((folder / name).read_bytes() + added.SerializeToString())
    return folder


def family_rows(kind, name):
    """The rows of a golden file of a kind's tokenizer."""
    text = (FAMILY_TOKENIZERS / kind / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if name.endswith(".jsonl") else json.loads(text)
