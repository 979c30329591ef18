"""Planned times: put together from layers that are timed, on this machine or on ranks of their own; hours of tasks."""

import json
import subprocess
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
import torch

import glm.model  # noqa: F401 (SAT's log goes to where standard error is when it is imported)
from glm.config import ModelConfig
from glm.linear import quantization_of
from glm.tokenizers.icetk import IcetkTokenizer, find_vocabulary
from planning import devices, layers, memory, ranks, speed, trial
from planning.shapes import Format, Setup, layer_bytes
from planning.trial import Curve, Trial
from runtime.errors import UserError
from tests.tried import CPU, TRIAL

ROOT = Path(__file__).resolve().parent.parent
LARGE = ModelConfig.from_name("glm-130b")


def test_a_token_reads_the_weights_at_best_and_a_context_is_multiplied():
    setup = Setup(ModelConfig.from_name("glm-1.3b"), Format("bf16"), context=512, new_tokens=16)
    room = memory.plan(setup)
    times = speed.plan(setup, room, CPU, 1e9)
    assert times.token_floor == pytest.approx((room.weights + speed.cache_read(setup)) / CPU.bandwidth)
    assert times.prefill_floor == pytest.approx(2 * 512 * 1.23e9 / 4e11, rel=0.1)
    assert times.load == pytest.approx(speed.START + room.weights / 1e9, rel=0.01)  # mapped, nothing is converted
    packed = replace(setup, run=Format("bf16", 4))
    assert speed.plan(packed, memory.plan(packed), CPU, None).token_floor < 0.5 * times.token_floor
    assert speed.plan(packed, memory.plan(packed), CPU, None).load is None


def test_what_is_expected_is_put_together_from_the_layers_that_were_tried():
    setup = Setup(ModelConfig.from_name("shape-335m"), Format("bf16"), context=512, new_tokens=16)
    layers = setup.config.num_layers

    def times(**changes):
        changed = replace(setup, **changes)
        return speed.plan(changed, memory.plan(changed), CPU, None)

    assert times().token == pytest.approx(layers * (1e-3 + 512 * 1e-7) + 2e-3 + speed.STEP + speed.CHOICE)
    assert times(rows=2, read_rows=2).token - times(rows=1, context=1024).token == pytest.approx(
        layers * (1e-3 / 3 + 512 * 2e-7 - 1024 * 1e-7) + 2e-3 + speed.CHOICE)  # the cache is read once for every row
    last = layers - 1 + 3 / 16  # of the last layer queries, keys and values: 3 of 4 + 12 widths
    assert times().prefill == pytest.approx(speed.PASS + last * 2e-2 + (layers - 1) * 512 * 512 * 1e-9, rel=0.02)
    assert times(read_rows=8).prefill - times(read_rows=4).prefill == pytest.approx(
        4 * (times(read_rows=2).prefill - times().prefill))  # rows of a length: in proportion
    split = times(read_rows=4, pass_tokens=512).prefill - times(read_rows=4).prefill
    assert split == pytest.approx(3 * speed.PASS)  # more passes of full size cost their beginnings alone
    assert times(scored=512).prefill > times().prefill  # then the last layer is computed, too
    scored = replace(setup, scored=64)
    assert speed.head_seconds(scored, CPU) == pytest.approx(4e-3)


def test_a_curve_goes_straight_between_its_points_and_on_in_proportion():
    curve = Curve(((1, 2.0), (3, 4.0)))
    assert [curve(count) for count in (0.5, 1, 2, 3, 6)] == [2, 2, 3, 4, 8]
    assert curve.times(2)(2) == 6


TRIED = ModelConfig(3, 64, 4, 96, 48, 64, num_image_tokens=0)


@pytest.mark.parametrize("run, changes", [(Format("fp32"), {"scored": 1}),
                                          (Format("bf16", 4), {"int8_vocabulary": True})])
def test_layers_are_tried_as_the_run_holds_them(monkeypatch, run, changes):
    monkeypatch.setattr(trial, "LEAST", 1)
    monkeypatch.setattr(trial, "ENOUGH", 0.0)
    monkeypatch.setattr(trial, "STEP_BYTES", 2 * layer_bytes(run, Setup(TRIED, run)))  # two of the three layers
    made, sample = [], layers.sample_model
    monkeypatch.setattr(layers, "sample_model", lambda *asked: made.append(sample(*asked)) or made[0])
    found = trial.trial(Setup(TRIED, run, rows=3, **changes))
    assert len(made[0].transformer.layers) == 2 and (made[0].vocabulary is not None) == bool(run.bits)
    assert (quantization_of(made[0]) or "").startswith("INT4" if run.bits else "")
    assert 3 in dict(found.step.points) and found.step(1) > 0 and found.read(100) > 0 and found.choice(1) > 0
    assert found.pair >= 0 and found.seen(5) >= 0 and found.scores(64) > 0
    assert ranks.read(json.loads(json.dumps(asdict(found)))) == found


@pytest.mark.parametrize("count, wanted", [(1, {"a": 1.0, "b": 2.0}), (2, {"a": 3.0, "b": 6.0})])
def test_what_is_compared_is_timed_in_turn(monkeypatch, count, wanted):
    """On a machine that is five times slower in the middle: of ranks the middle time counts, else the fastest."""
    now, order = [0.0], []

    def work(name, seconds):
        def run():
            round_number = order.count(name)
            order.append(name)
            now[0] += seconds * {0: 9, 1: 1, 2: 5}.get(round_number, 3)  # the first is not counted

        return run

    monkeypatch.setattr(trial.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(trial, "LEAST", 4)
    monkeypatch.setattr(trial, "LEAST_OF_RANKS", 4)
    monkeypatch.setattr(trial, "LONG", 100.0)
    clock = trial.Clock(256, count)
    met = []
    clock._agreed, clock._meet = lambda value: value, lambda: met.append(len(order))
    read = []
    clock._read = lambda others: read.append(len(others))
    works, own = {"a": work("a", 1.0), "b": work("b", 2.0)}, {"a": 64.0, "b": 1000.0}
    assert clock.in_turn(works, own.__getitem__) == wanted
    assert read == [192, 0] * 5  # bytes of the weights that are not the work's own
    assert order == ["a", "b"] * 5 and met == ([] if count == 1 else list(range(10)))  # ranks meet before each time


def test_short_work_is_done_until_the_caches_have_settled_and_the_last_time_counts(monkeypatch):
    now, order = [0.0], []

    def work():
        order.append(now[0])
        now[0] += 2e-3 if len(order) % trial.SETTLED else 1e-3  # what was done before makes all but the last slower

    monkeypatch.setattr(trial.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(trial, "SHORT", 1.0)
    monkeypatch.setattr(trial, "ENOUGH", 0.0)
    clock = trial.Clock(64, 1)
    clock._read = lambda others: None
    assert clock.in_turn({"a": work}, lambda _: 0) == {"a": pytest.approx(1e-3)}
    assert len(order) == (1 + trial.LEAST) * trial.SETTLED


def test_a_place_of_the_cache_costs_what_more_places_add_and_ranks_take_it_from_one_process(monkeypatch):
    steps = {(rows, is_full): rows * (2.0 if is_full else 1.0) for rows in (1, 4, 16, 64) for is_full in (False, True)}
    asked = []

    def in_turn(_, works, own):
        asked.append(works)
        return {key: steps.get(key, 1.0) for key in works}

    monkeypatch.setattr(trial.Clock, "in_turn", in_turn)
    seen, pair = trial.attention(Setup(TRIED, Format("fp32")))
    assert list(asked[0]) == sorted(steps)  # an empty cache and a full one after each other
    with torch.inference_mode():
        for run in asked[0].values():
            run()
    assert dict(seen.points) == {rows: pytest.approx(rows / 3 / 1023) for rows in (1, 4, 16, 64)} and pair == 0
    alone = Trial(*(Curve(((1, 1.0),)) for _ in range(3)), 0.0, *(Curve(((1, 1.0),)) for _ in range(2)))
    done = subprocess.CompletedProcess([], 0, "x\n" + json.dumps(asdict(alone)), "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    monkeypatch.setattr(ranks, "cores", lambda: 8)
    monkeypatch.setattr(ranks, "attention", lambda setup: (Curve(((1, 3.0),)), setup.degree * 7.0))
    for degree, times in ((2, 1), (16, 1), (3, 8 / 6)):  # three ranks have two threads each
        found = ranks.on_ranks(Setup(TRIED, Format("fp32"), degree=degree))
        assert found == replace(alone, seen=Curve(((1, 3.0 * times),)), pair=7.0 * times)


def test_a_layer_too_wide_to_be_tried_is_tried_narrower():
    config, times = layers.narrowed(LARGE)
    assert times == 4 and config.hidden_size == LARGE.hidden_size // 4 and config.head_size == LARGE.head_size
    assert layers.narrowed(TRIED) == (TRIED, 1)
    assert layers.narrowed(LARGE, 16)[1] == 2  # which has 48 heads, and not 24
    grouped = replace(ModelConfig.from_name("chatglm2-6b"), hidden_size=4 * 4096, num_attention_heads=4 * 32)
    assert layers.narrowed(grouped)[0].num_key_value_groups == 1


def test_the_ranks_divide_the_vocabulary_that_is_tried():
    config = replace(LARGE, hidden_size=4608, num_attention_heads=36)
    assert layers.tried_vocabulary(config, 3) % 3 == 0 and layers.tried_vocabulary(TRIED, 3) == TRIED.vocab_size


def test_ranks_that_fail_are_said_in_a_line(monkeypatch):
    def failed(command, **_):
        assert command[1:4] == [str(ROOT / "scripts" / "launch.py"), "2", "planning"]
        return subprocess.CompletedProcess(command, 2, "", "warning: x\nerror: no memory\n")

    monkeypatch.setattr(subprocess, "run", failed)
    with pytest.raises(UserError, match="2 ranks could not be timed here: no memory"):
        ranks.on_ranks(Setup(TRIED, Format("fp32"), degree=2))


@pytest.mark.slow
def test_ranks_time_their_layers_together():
    assert ranks.on_ranks(Setup(TRIED, Format("fp32"), degree=2)).step(1) > 0


def test_streamed_layers_come_over_the_link_and_ranks_exchange():
    gpu = devices.named("v100-32g")
    setup = Setup(LARGE, Format("fp16"), "cuda", 8, context=512, new_tokens=16)
    alone = speed.plan(setup, memory.plan(setup), gpu, None).token
    assert speed.exchanges(setup, 1, gpu) > 2 * 70 * speed.EXCHANGE
    limited = replace(setup, offload_limit=16e9)
    room = memory.plan(limited)
    assert speed.plan(limited, room, gpu, None).token == room.streamed / gpu.link > 10 * alone


HAS_MODEL = (ROOT / "checkpoints" / "glm-small" / "latest").exists()


@pytest.mark.skipif(not HAS_MODEL, reason="the embedded model is not in this clone")
def test_hours_of_tasks_come_from_their_own_requests():
    from evaluation.hours import hours

    config = ModelConfig.from_name("glm-small")
    tokenizer = IcetkTokenizer(find_vocabulary(ROOT / "checkpoints" / "glm-small"), config.num_image_tokens)
    setup = Setup(config, Format("fp32"))
    found = {limit: hours([str(ROOT / "tasks" / "quickstart")], ROOT / "data", tokenizer, setup, CPU, None, limit, None,
                          None) for limit in (None, 2)}
    assert found[None].keys() == found[2].keys() and len(found[2]) == 4
    assert all(0 < found[2][name] <= found[None][name] < 1 for name in found[2])
    doubled = {field.name: value.times(2) if isinstance(value, Curve) else 2 * value
               for field in fields(TRIAL) for value in (getattr(TRIAL, field.name),)}
    slower = replace(CPU, trial=Trial(**doubled))
    twice = hours([str(ROOT / "tasks" / "quickstart")], ROOT / "data", tokenizer, setup, slower, None, None, None, None)
    assert all(1.3 * found[None][name] < twice[name] < 2.1 * found[None][name] for name in twice)


@pytest.mark.parametrize("precision, few_cost_less", [("fp32", False), ("bf16", True)])
def test_hours_know_that_float32_is_never_scored_in_few_rows(precision, few_cost_less):
    from evaluation.hours import batch_seconds
    from evaluation.requests import ScoreRequest

    setup = Setup(LARGE, Format(precision))
    few, more = (batch_seconds([ScoreRequest((1,), (tuple(range(count)),), 0, 0, 1)], setup, CPU, None)
                 for count in (8, 40))
    assert (few < more) if few_cost_less else (few == more)


def test_hours_use_the_evaluation_s_own_budget():
    from evaluation import requests as batching
    from evaluation.hours import batch_tokens
    from evaluation.requests import ScoreRequest

    request = ScoreRequest((1, 2), ((3,),), 0, 0, 1)
    setup = Setup(LARGE, Format("fp16"), "cuda", 8)
    assert batch_tokens(replace(setup, kind="cpu"), CPU, [request]) == batching.CPU_TOKENS
    assert batch_tokens(setup, devices.named("a100-40g"), [request]) % 1024 == 0
