"""GLM models on SwissArmyTransformer.

    import glm
    model, tokenizer = glm.load("checkpoints/glm-small")
    logits = model.logits(tokens, position_ids, blocked)
"""


def load(path, device="cpu", dtype="float32", tokenizer_path=None, bits=None, **config_overrides):
    """The model, ready to run and without gradients, and the tokenizer of a checkpoint folder.

    The arguments are the fields of glm.options.ModelOptions; config_overrides may be those of ModelConfig, too.
    dtype: float32, bfloat16, float16, or fp32, bf16, fp16, or torch's own. Raises UserError for every fault of the
    files or arguments. With several processes all call it, and all hear of a fault of one.
    """
    from glm import loading  # here, because torch and SAT take seconds to import
    from glm.options import ModelOptions

    return loading.load(ModelOptions.of(path=path, device=device, dtype=dtype, tokenizer_path=tokenizer_path, bits=bits,
                                        **config_overrides))
