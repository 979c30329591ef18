"""Golden data of GLM, ChatGLM-6B and ChatGLM2-6B: small random checkpoints, and what the originals compute with them.

golden/family holds a part of the kit; GLM_GOLDEN_FAMILY names the folder of the whole one, where there is one.
"""

import json
import os
from pathlib import Path

import numpy
import torch

from glm.checkpoint import open_checkpoint, read_config
from glm.loading import load_model
from glm.options import ModelOptions
from glm.shard import MappedTensors
from runtime import parallel
from tests.golden_data import GOLDEN

KIT = Path(os.environ.get("GLM_GOLDEN_FAMILY", GOLDEN / "family"))
SOP, MASK, GMASK = 1304, 1300, 1301  # of the kit's ChatGLM


def cases(family, name="logits"):
    """Case -> its arrays."""
    found = {}
    with numpy.load(KIT / family / f"{name}.npz") as arrays:
        for key in arrays.files:
            case, _, part = key.rpartition("/")
            found.setdefault(case, {})[part] = arrays[key]
    return found


def descriptions(family):
    return json.loads((KIT / family / "logits.json").read_text(encoding="utf-8"))


def checkpoint(family, name):
    return KIT / family / "checkpoints" / name


def load(folder, bits=None, **fields):
    """The model of a checkpoint, of this rank. fields: of its configuration."""
    options = ModelOptions(path=folder, device=torch.device("cpu"), dtype=torch.float32, bits=bits)
    config = read_config(folder, **fields)
    if not parallel.is_started():
        parallel.start()
    return load_model(options, config)


def causal(context, width):
    """(b, s, s): tokens see what is left of them and of the context (b,)."""
    places = torch.arange(width)
    return (places > places[:, None]) & (places >= torch.as_tensor(context).view(-1, 1, 1))


def glm_inputs(arrays):
    """tokens, position_ids, blocked, as Hugging Face's GLM understands its arguments."""
    tokens = torch.from_numpy(arrays["input_ids"])
    b, s = tokens.shape
    mask = torch.from_numpy(arrays.get("attention_mask", numpy.zeros(1, dtype=numpy.int64)))
    if mask.numel() in (1, b):
        blocked = causal(mask.flatten(), s).expand(b, s, s)
    else:
        blocked = (mask == 0)[:, None].expand(b, s, s) if mask.dim() == 2 else (mask == 0)[:, 0]
    counting = torch.stack((torch.arange(s), torch.zeros(s, dtype=torch.int64))).expand(b, 2, s)
    return tokens, torch.from_numpy(arrays["position_ids"]) if "position_ids" in arrays else counting, blocked


def chatglm_inputs(arrays, is_2d=True):
    """The same of ChatGLM-6B, which makes positions and mask from the tokens where they are not given."""
    tokens = torch.from_numpy(arrays["input_ids"])
    if "position_ids" in arrays:
        return tokens, torch.from_numpy(arrays["position_ids"]), torch.from_numpy(arrays["attention_mask"])[:, 0]
    row, s = tokens[0].tolist(), tokens.shape[1]
    context = row.index(SOP)
    mask = row.index(GMASK) if GMASK in row else row.index(MASK)
    positions = [*range(context), *[mask] * (s - context)]
    places = [*[0] * context, *range(1, s - context + 1)]
    if not is_2d:
        return tokens, torch.tensor([list(range(s)) if GMASK in row else positions]), causal([context], s)
    return tokens, torch.tensor([[positions, places]]), causal([context], s)


def chatglm2_inputs(arrays):
    """The same of ChatGLM2-6B; padding, on the left, is blocked."""
    tokens = torch.from_numpy(arrays["input_ids"])
    b, s = tokens.shape
    real = torch.from_numpy(arrays.get("attention_mask", numpy.ones((b, s), dtype=numpy.int64))) == 1
    return tokens, (real.cumsum(-1) - 1).clamp(min=0), causal([0], s) | ~real[:, None]


def weights_of(folder):
    """Of a checkpoint of Hugging Face's, by the names that they have there."""
    tensors = MappedTensors(open_checkpoint(folder).index.parts[0])
    return {name: tensors[name] for name in tensors}


def rows(family, name="generation"):
    file = KIT / family / f"{name}.jsonl"
    file = file if file.exists() else GOLDEN / "family" / family / file.name  # the whole kit has no file of beams
    text = file.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
