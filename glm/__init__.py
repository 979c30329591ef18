"""GLM models on SwissArmyTransformer.

    import glm
    model, tokenizer = glm.load("checkpoints/glm-small")
    logits = model.logits(tokens, position_ids, blocked)
"""


def load(path, device="cpu", dtype="float32", tokenizer_path=None, bits=None, **config_overrides):
    """The model and the tokenizer of a checkpoint folder; glm.loading.load says what every argument means."""
    from glm import loading  # here, because torch and SAT take seconds to import

    return loading.load(path, device, dtype, tokenizer_path, bits, **config_overrides)
