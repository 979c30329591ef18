"""A step of training beside plain transformers and peft on an equal shape: tokens per second, and peak memory.

Every engine has a process of its own, whose largest resident memory is its. They step in turn, so that what else goes
on meets all alike, and are compared pair by pair. A row is a question that is read and an answer that is learned;
AdamW, no dropout, float32 weights. With bf16 the products are computed in it: here by weights in bf16 with masters in
float32, there by autocast, as Hugging Face's Trainer does.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from statistics import median
from typing import NamedTuple

import torch

from glm import spec
from glm.config import ModelConfig
from glm.loading import DTYPES
from tools.benchmarking import own, results
from tools.benchmarking.pairs import Elsewhere
from tools.benchmarking.peers import Missing
from tools.check_plan import highest

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
    threads: int

    @property
    def tokens(self) -> int:
        return self.rows * (self.source + self.target)


class Step(NamedTuple):
    seconds: float
    processor: float  # seconds, of all threads
    peak: int  # largest resident memory of the process so far, bytes


@dataclass(frozen=True)
class Result:
    work: Work
    steps: tuple[Step, ...]  # the n-th ones of all engines were done one after the other

    @property
    def peak(self) -> int:
        return max(step.peak for step in self.steps)


def measure(engines: Sequence[str], works: Sequence[tuple[str, str]], steps: int, model: str,
            **size: int) -> Iterator[Result]:
    """Of each of `works` (method, precision) the results of the engines. A step of each before, which makes the moments
    and faults memory in, does not count. Raises UserError for a model that is not known."""
    ModelConfig.from_name(model)  # a process of its own could only end with it
    for method, precision in works:
        with ExitStack() as stack:
            running = [stack.enter_context(Engine(Work(engine, method, precision, model, **size)))
                       for engine in engines]
            done: dict[Engine, list[Step]] = {engine: [] for engine in running}
            for number in range(steps + 1):
                for engine in running[::-1] if number % 2 else running:  # who begins changes
                    step = engine.step()
                    results.say(f"{engine.work.engine} {method} {precision}: {step.seconds:.2f} s, "
                                f"{step.processor:.2f} s of the processor, {step.peak / 1e9:.2f} GB")
                    if number:
                        done[engine].append(step)
        yield from (Result(engine.work, tuple(taken)) for engine, taken in done.items())


class Engine(Elsewhere):
    """One in a process of its own, which makes a step when it is asked for one."""

    def __init__(self, work: Work) -> None:
        super().__init__(answer, work)
        self.work = work

    def step(self) -> Step:
        """Raises RuntimeError where the process has ended; it has said why itself."""
        try:
            return self.ask("step")
        except Missing as reason:
            raise RuntimeError(f"{self.work.engine}, {self.work.method}: {reason}") from None


def answer(pipe: Connection, work: Work) -> None:
    """A step's figures for each question, until nobody asks."""
    sys.stdout = sys.stderr  # what a library prints is no figure
    step = prepared(work)
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        pipe.send(timed(step))


def prepared(work: Work) -> Callable[[], None]:
    torch.manual_seed(0)
    torch.set_num_threads(work.threads)
    return (_own if work.engine == OWN else _peer)(work, ModelConfig.from_name(work.model))


def timed(step: Callable[[], None]) -> Step:
    began, processor = time.perf_counter(), time.process_time()
    step()
    return Step(time.perf_counter() - began, time.process_time() - processor, highest())


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
    """Heads and rows; beside the toolkit's figures how they compare with the peer's. How many times as fast is the
    median of the pairs of steps, with the least and the most of them."""
    peers = {(one.work.method, one.work.precision): one for one in found if one.work.engine == PEER}
    rows = []
    for one in found:
        work, ratios = one.work, ["", "", ""]
        seconds, processor = (median(step[kind] for step in one.steps) for kind in range(2))
        if work.engine == OWN and (peer := peers.get((work.method, work.precision))) is not None:
            pairs = list(zip(one.steps, peer.steps, strict=True))
            by_clock, by_processor = ([there[kind] / here[kind] for here, there in pairs] for kind in range(2))
            ratios = [_spread(by_clock), _spread(by_processor), f"{one.peak / peer.peak:.2f}"]
        rows.append([work.engine, work.method, work.precision, f"{seconds:.2f}", f"{work.tokens / seconds:.0f}",
                     f"{processor:.2f}", f"{one.peak / 1e9:.2f}", *ratios])
    return ["engine", "method", "precision", "s a step", "tokens/s", "s of the processor", "peak GB", "times as fast",
            "by the processor", "memory, times"], rows


def _spread(ratios: Sequence[float]) -> str:
    return f"{median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})"
