"""A small random GLM in the original's layout, and flags of a training that a test can afford."""

import json

import torch

from glm.config import ModelConfig
from glm.model import GLM
from tests.golden_finetune import KIT, tokenizer_flags
from tuning.model import Tuned
from tuning.saving import save

CONFIG = ModelConfig(num_layers=2, hidden_size=32, num_attention_heads=2, inner_hidden_size=128, vocab_size=1152,
                     max_sequence_length=128, position_encoding_2d=True, num_image_tokens=0, family="glm", gelu="tanh")


def tiny_glm(folder, seed=0):
    torch.manual_seed(seed)
    model = GLM(CONFIG, skip_init=False)
    save(folder, Tuned(model), 100, torch.float32, folder)
    return folder


def training_flags(load, *more, steps=12):
    """Of COPA as a cloze task, whose rows the repository has."""
    return ["--task", "copa", "--data-dir", str(KIT / "data" / "superglue" / "COPA"), "--cloze-eval", "--seq-length",
            "64", *tokenizer_flags("bpe"), "--load", str(load), "--batch-size", "2", "--train-iters", str(steps),
            "--save-interval", "3", "--lr", "1e-2", "--eval-epoch", "0", *map(str, more)]


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def weights_of(folder):
    iteration = (folder / "latest_checkpointed_iteration.txt").read_text(encoding="utf-8").strip()
    return torch.load(folder / iteration / "mp_rank_00_model_states.pt", weights_only=True)["module"]
