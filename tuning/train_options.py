"""What may be asked of `python -m tuning train` beside the samples and the model: the optimiser, steps, what is kept.

Names and defaults are those of the GLM repository. Knows no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runtime.arguments import amount, count, count_or_zero, option, share
from tuning.options import STYLES

OPTIMIZERS = ("adam", "adafactor")
SAVED = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class OptimizerOptions:
    """How a gradient moves the weights, and at which rate in which step."""

    optimizer: str = option("adam", "AdamW, or Adafactor, which keeps no moments and knows no betas",
                            choices=OPTIMIZERS)
    lr: float = option(1e-4, "peak learning rate", read=amount)
    weight_decay: float = option(0.01, "of all but biases and LayerNorms, decoupled from the gradient", read=amount)
    adam_beta1: float = option(0.9, "memory of the gradient", read=share)
    adam_beta2: float = option(0.999, "memory of its square", read=share)
    adam_eps: float = option(1e-8, "what is added to the root of the square", read=amount)
    clip_grad: float = option(1.0, "largest norm of the whole gradient; 0: any", read=amount)
    warmup: float = option(0.01, "share of the steps in which the rate rises", read=share)
    lr_decay_style: str = option("linear", "how it falls afterwards", choices=STYLES)
    lr_decay_ratio: float = option(0.1, "share of the peak that it falls to", read=amount)
    lr_decay_iters: int | None = option(None, "the step at which it has fallen", none="the last", read=count)
    loss_scale: float | None = option(None, "float16: the loss is multiplied by this", none="by what fits", read=amount)
    loss_scale_window: int = option(1000, "float16: so many good steps double the scale", read=count)
    hysteresis: int = option(2, "float16: so many overflows halve the scale", read=count)
    min_scale: float = option(1.0, "float16: the smallest scale", read=amount)


@dataclass(frozen=True)
class TrainOptions:
    """What a step reads, how many there are, and what is kept of them."""

    batches: Path | None = option(None, "rows of each step, a JSON line each", none="by --epochs", metavar="FILE")
    train_iters: int | None = option(None, "steps", none="as many as --batches or --epochs say",
                                      read=count_or_zero)
    epochs: int | None = option(None, "how often each row is read", none="by --batches or --train-iters", read=count)
    batch_size: int = option(4, "rows of a step on each data-parallel rank", read=count)
    gradient_accumulation_steps: int = option(1, "parts that a step's rows are computed in", read=count)
    checkpoint_activations: bool = option(False, "layers are computed twice, and keep no activations")
    hidden_dropout: float = option(0.1, "of hidden states and prefixes; of ChatGLM's, prefixes alone", read=share)
    attention_dropout: float = option(0.1, "of attention's shares; not of ChatGLM's", read=share)
    output_dropout: float = option(0.1, "before a classification head", read=share)
    eval_epoch: int = option(1, "epochs between two validations; 0: none", read=count_or_zero)
    eval_interval: int = option(1000, "pretraining: steps between two validations; 0: none", read=count_or_zero)
    eval_iters: int = option(100, "pretraining: batches of a validation", read=count)
    eval_batch_size: int | None = option(None, "rows of a batch of validation", none="--batch-size", read=count)
    validation_rows: int | None = option(None, "rows of the validation split that are scored, drawn by --seed",
                                         none="all", read=count)
    validation_metric: str | None = option(None, "which metric chooses the best epoch; loss: the least",
                                           none="the task's first")
    save_interval: int = option(5000, "steps between two saved states", read=count)
    save_dtype: str | None = option(None, "of the saved checkpoint", none="that of --dtype", choices=SAVED)
    summary_dir: Path | None = option(None, "TensorBoard's events go to a folder of the run's name here", metavar="DIR",
                                      none="none are written")
    deepspeed_config: Path | None = option(None, "DeepSpeed's JSON", none="none", metavar="FILE")
