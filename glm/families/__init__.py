"""The families of models, a file each; a checkpoint's own configuration says which one it is of (ModelConfig.family).

A family's file holds all that is peculiar to it. No torch at import: plans and conversions read it, too.

    PRESETS                            name -> fields of ModelConfig
    tensors(config)                    the table of its tensors (glm.spec.Table)
    check(config)                      raises UserError where the configuration is none of this family's
    rotary_size(config)                how many coordinates of a head turn with one position; 0: positions are learned
    prompt_form(config)                what stands around a prompt (glm.prompt_form)
    embed(transformer, words, position_ids)      the embedded words (b, s, h) -> what goes into the first layer
    block(layer, number, hidden, step)           one layer, over its linears, the kernels and glm.sat.Step
    initialise(model)                  optional: random weights to train from
    layer_weights(layer)               optional: what the compiled decoding step reads (kernels.stack)
"""

from glm.families import chatglm, chatglm2, glm, glm130b

FAMILIES = {family.NAME: family for family in (glm130b, glm, chatglm, chatglm2)}
