"""A step of training beside plain transformers and peft on an equal shape: tokens per second, and peak memory.

Every engine and method runs in a process of its own, whose largest resident memory is its. A row is a question that is
read and an answer that is learned; AdamW, no dropout, float32 weights. With bf16 the products are computed in it:
here by weights in bf16 with masters in float32, there by autocast, as Hugging Face's Trainer does.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import torch

from glm import spec
from glm.config import ModelConfig
from glm.loading import DTYPES
from runtime.files import REPOSITORY
from tools.benchmarking import own

METHODS = ("full", "lora")
OWN, PEER = "glm", "transformers"
RANK = 8  # of LoRA, on queries, keys, values and the attention's output


@dataclass(frozen=True)
class Work:
    engine: str
    method: str
    precision: str
    model: str  # a preset
    rows: int
    source: int  # tokens that are read
    target: int  # tokens that are learned
    steps: int
    threads: int


@dataclass(frozen=True)
class Result:
    engine: str
    method: str
    precision: str
    seconds: float  # a step, median
    tokens_per_second: float
    peak_gb: float


def measure(engines: Sequence[str], works: Sequence[tuple[str, str]], **size) -> Iterator[Result]:
    """works: (method, precision). In turn, so that what else goes on meets all."""
    for method, precision in works:
        for engine in engines:
            work = Work(engine, method, precision, **size)
            done = subprocess.run([sys.executable, "-m", __name__, json.dumps(asdict(work))], capture_output=True,
                                  text=True, cwd=REPOSITORY)
            if done.returncode:
                raise RuntimeError(f"{engine}, {method}: {done.stderr.strip().splitlines()[-1]}")
            seconds, peak = json.loads(done.stdout.splitlines()[-1])
            tokens = work.rows * (work.source + work.target)
            yield Result(engine, method, precision, seconds, tokens / seconds, peak)


def run(work: Work) -> tuple[float, float]:
    """Median seconds of a step, and the largest resident memory of this process (10^9 bytes)."""
    torch.manual_seed(0)
    torch.set_num_threads(work.threads)
    step = (_own if work.engine == OWN else _peer)(work, ModelConfig.from_name(work.model))
    seconds = []
    for _ in range(work.steps + 1):
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def _own(work: Work, config: ModelConfig) -> Callable[[], None]:
    from glm.adapters import lora
    from tuning.batch import batch_of
    from tuning.data.sample import Kind, Row, Sample
    from tuning.losses import loss_of
    from tuning.model import Tuned
    from tuning.optimizer import Optimizer
    from tuning.train_options import OptimizerOptions

    model = own.random_model(config, DTYPES[work.precision], "cpu")
    if work.method == "lora":
        lora.attach(model, lora.fresh(config, RANK, 16.0, (spec.QKV, spec.DENSE), 0), "benchmark")
    tuned = Tuned(model)
    frozen = tuned.frozen() if work.method == "lora" else set()
    optimizer = Optimizer(tuned.learn(lambda name: name not in frozen), OptimizerOptions())

    def sample(number: int) -> Sample:
        length = work.source + work.target
        ids = torch.randint(1, config.vocab_size, (length,)).tolist()
        is_target = [0] * work.source + [1] * work.target
        return Sample(str(number), Kind.LANGUAGE, (Row(tuple(ids), tuple(range(length)), (0,) * length, work.source,
                                                       (*ids[1:], 0), tuple(is_target)),))

    def step() -> None:
        batch = batch_of([sample(number) for number in range(work.rows)], config)
        optimizer.backward(loss_of(tuned, batch))
        optimizer.move(1e-4, tuned.is_split, lambda norm: None)

    return step


def _peer(work: Work, config: ModelConfig) -> Callable[[], None]:
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    shape = own.shape_of(config)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.inner,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, tie_word_embeddings=True))
    if work.method == "lora":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(
            r=RANK, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], task_type="CAUSAL_LM"))
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def step() -> None:
        ids = torch.randint(1, shape.vocabulary, (work.rows, work.source + work.target))
        labels = ids.clone()
        labels[:, :work.source] = -100
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=work.precision == "bf16"):
            loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def table(found: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows; beside the toolkit's figures how they compare with the peer's."""
    peers = {(one.method, one.precision): one for one in found if one.engine == PEER}
    rows = []
    for one in found:
        peer = peers.get((one.method, one.precision)) if one.engine == OWN else None
        ratios = ["", ""] if peer is None else [f"{one.tokens_per_second / peer.tokens_per_second:.2f}",
                                                f"{one.peak_gb / peer.peak_gb:.2f}"]
        rows.append([one.engine, one.method, one.precision, f"{one.seconds:.2f}", f"{one.tokens_per_second:.0f}",
                     f"{one.peak_gb:.2f}", *ratios])
    return ["engine", "method", "precision", "s a step", "tokens/s", "peak GB", "times as fast", "memory, times"], rows


if __name__ == "__main__":
    print(json.dumps(run(Work(**json.loads(sys.argv[1])))))
