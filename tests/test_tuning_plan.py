"""python -m tuning plan, and the check before a training loads anything: bytes, seconds, advice, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from unittest import mock

import pytest
import torch

from evaluation.scorer import segments_blocked
from glm.adapters import lora
from glm.config import PRESETS, ModelConfig
from glm.dropout import Dropout
from glm.inputs import position_ids
from glm.model import GLM
from glm.spec import DENSE, LINEARS, MLP_OUT, QKV
from kernels import gradients
from planning.check import Room
from planning.devices import Device
from planning.shapes import Format, Setup
from runtime import parallel
from runtime.files import REPOSITORY
from tuning import plan_fit, plan_trial
from tuning.__main__ import main
from tuning.batch import batch_of
from tuning.data.sample import Kind, Row, Sample
from tuning.model import PromptEncoder, Tuned
from tuning.options import PartsOptions, PromptOptions
from tuning.packing import Size, size_of, together
from tuning.plan import Job, Learned, LowRank, Zero, learned_of, low_rank_parameters, model_parameters
from tuning.plan_memory import layer_bytes, needs
from tuning.plan_time import Pace, epoch_seconds

SMALL = REPOSITORY / "checkpoints/glm-small"
SHAPE = dict(num_layers=3, hidden_size=64, num_attention_heads=4, inner_hidden_size=96, vocab_size=512,
             max_sequence_length=128)
FAMILIES = ("glm-small", "glm-base", "chatglm-6b", "chatglm2-6b")
SIZE = Size(4, 256, 200)
GB = 1e9


def config_of(family: str) -> ModelConfig:
    return ModelConfig(**(PRESETS[family] | SHAPE))


def job(size: Size = SIZE, **changes) -> Job:
    config = ModelConfig.from_name(changes.pop("model", "shape-110m"))
    setup = Setup(config, changes.pop("run", Format("fp32")), changes.pop("kind", "cpu"), changes.pop("degree", 1))
    learned = changes.pop("learned", Learned(config.num_layers))
    return Job(setup, learned, (size,), steps=10, of_epoch=10, **changes)


LORA = Learned(0, False, 0, (LowRank(QKV, 8),))


def kept_by_autograd(config: ModelConfig, size: Size, drops: tuple[float, float], learned: Learned) -> int:
    """Bytes that a pass keeps for its gradients, weights left out."""
    model = GLM(config, skip_init=False)
    if learned.low_rank:
        lora.attach(model, lora.fresh(config, 8, 1.0, [each.linear for each in learned.low_rank], 0,
                                      dropout=0.1 * learned.low_rank[0].has_dropout), "a test")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("adapters" in name)
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        alive.append(tensor)
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = torch.arange(size.tokens).view(size.rows, size.width) % 500
    places = torch.arange(size.width).expand(size.rows, -1)
    segments = (places >= size.width // 2).long()
    blocked = segments_blocked(segments, torch.full((size.rows,), size.width // 2))
    dropout = Dropout(*drops, 0.0, 0, 0, tuple(range(size.rows))) if any(drops) else None
    wanted = torch.arange(size.wanted)
    for linear in (each for name, each in model.named_modules() if name.endswith("adapters.lora")):
        linear.dropping(dropout, size.width, wanted)
    hooks = torch.autograd.graph.saved_tensors_hooks

    def inner(pack, unpack):
        """The hooks of what is made again, behind which those from outside see nothing."""
        def kept_of(tensor):
            packed = pack(tensor)
            return keep(packed) if isinstance(packed, torch.Tensor) else packed

        return hooks(kept_of, unpack)

    with mock.patch.object(gradients, "saved_tensors_hooks", inner), hooks(keep, lambda tensor: tensor):
        model.hidden_states(tokens, position_ids(config, places, torch.zeros_like(places)), blocked, places=wanted,
                            dropout=dropout)
    return sum(kept.values())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("drops", [(0.0, 0.0), (0.1, 0.1), (0.1, 0.0)])
@pytest.mark.parametrize("learned", [
    Learned(9), Learned(0, False, 0, (LowRank(QKV, 8),)), Learned(0, False, 0, tuple(LowRank(n, 8) for n in LINEARS)),
    Learned(0, False, 0, (LowRank(QKV, 8, 1, True), LowRank(MLP_OUT, 8, 1, True)))],
    ids=["all", "lora", "lora everywhere", "lora with dropout"])
def test_a_layers_activations_are_what_autograd_keeps(family, drops, learned):
    """One more layer of four keeps as much more as the plan says, to a hundredth."""
    parallel.start(1)
    if any(each.has_dropout for each in learned.low_rank) and not any(drops):
        learned = replace(learned, low_rank=tuple(replace_dropout(each) for each in learned.low_rank))
    size, shorter = Size(2, 64, 20), config_of(family)
    longer = shorter.override(num_layers=4)
    found = kept_by_autograd(longer, size, drops, learned) - kept_by_autograd(shorter, size, drops, learned)
    planned = Job(Setup(longer, Format("fp32")), learned, (size,), 1, 1, hidden_dropout=drops[0],
                  attention_dropout=drops[1])
    assert layer_bytes(planned, size, 1) == pytest.approx(found, rel=0.01)


def replace_dropout(each: LowRank) -> LowRank:
    """Without a Dropout nothing is dropped."""
    return each._replace(has_dropout=False)


@pytest.mark.parametrize("larger", [Size(8, 256, 400), Size(4, 512, 200), Size(4, 256, 900)])
def test_more_rows_longer_ones_and_more_scored_places_take_more(larger):
    assert needs(job(larger)).host > needs(job()).host


def test_what_saves_memory():
    whole = needs(job()).host
    assert needs(job(is_checkpointed=True)).host < whole
    assert needs(job(attention_dropout=0.0)).host < whole
    assert needs(job(learned=LORA)).host < whole - 2 * 4 * model_parameters(job())
    packed = needs(job(learned=LORA, run=Format("fp32", 4)))
    assert packed.weights < 0.6 * needs(job(learned=LORA)).weights
    assert needs(job(model="shape-335m")).host > 2 * whole


@pytest.mark.parametrize(("measured", "planned"), [
    (2720, dict(size=Size(8, 128, 264))),
    (2644, dict(size=Size(2, 512, 226), is_checkpointed=True)),
    (1510, dict(size=Size(8, 128, 264), learned=LORA)),
    (1127, dict(size=Size(8, 128, 264), learned=LORA, run=Format("fp32", 4))),
    (7130, dict(size=Size(4, 256, 256), model="shape-335m", hidden_dropout=0.0, attention_dropout=0.0)),
    (2650, dict(size=Size(2, 256, 128), model="shape-335m", hidden_dropout=0.0, attention_dropout=0.0,
                learned=replace(LORA, low_rank=(*LORA.low_rank, LowRank(DENSE, 8)))))],
    ids=["all", "checkpointed", "lora", "lora, int4", "335m", "335m, lora"])
def test_peaks_are_within_a_tenth_of_what_was_measured(measured, planned):
    """MB, of processes on Linux with two cores (docs/benchmarks.md)."""
    assert needs(job(**planned)).host / 1e6 == pytest.approx(measured, rel=0.1)


def test_weights_gradients_and_moments_of_a_whole_model_take_sixteen_bytes_a_parameter():
    found, count = needs(job()), model_parameters(job())
    assert (found.weights, found.gradients, found.moments) == (4 * count, 4 * count, 8 * count)
    half = needs(job(run=Format("bf16")))
    assert half.weights == 6 * count and half.moments == 8 * count  # with float32 masters


def test_zero_divides_among_the_ranks():
    whole = needs(job(kind="cuda", ranks=4))
    stages = [needs(job(kind="cuda", ranks=4, zero=Zero(stage))) for stage in (1, 2, 3)]
    assert stages[0].moments == whole.moments / 4 and stages[0].gradients == whole.gradients
    assert stages[1].gradients == whole.gradients / 4 and stages[1].weights == whole.weights * 5 / 4
    assert stages[2].weights == whole.weights / 2  # DeepSpeed keeps a copy of what a rank moves, in float32 too
    assert needs(job(kind="cuda", degree=4)).weights < 0.35 * needs(job(kind="cuda")).weights


@pytest.mark.parametrize("kind", ["lstm", "mlp", "none"])
def test_parameters_beside_the_model_are_counted(kind):
    config = config_of("glm-small")
    found = learned_of(config, PartsOptions(), PromptOptions(True, 3, 2, kind, True), labels=0)
    made = PromptEncoder(config.hidden_size, 5, kind)
    assert (found.beside, found.is_whole) == (sum(each.numel() for each in made.parameters()), False)


def test_parameters_of_the_model_and_of_lora_are_counted():
    parallel.start(1)
    config = config_of("chatglm2-6b")
    model = GLM(config, skip_init=False)
    whole = Job(Setup(config, Format("fp32")), Learned(3), (SIZE,), 1, 1)
    assert model_parameters(whole) == sum(each.numel() for each in model.parameters())
    parts = PartsOptions(lora_rank=4, lora_linears="query_key_value,dense", lora_split_qkv=True)
    lora.attach(model, lora.fresh(config, 4, 1.0, parts.lora_linears.split(","), 0, is_split=True), "a test")
    made = sum(each.numel() for name, each in Tuned(model).named().items() if "matrix_" in name)
    adapted = replace(whole, learned=learned_of(config, parts, PromptOptions(), 0))
    assert (model_parameters(adapted), low_rank_parameters(adapted)) == (0, made)


def test_sizes_are_those_of_the_batches():
    context = (7, 8, 9, 10)
    choices = Sample("a", Kind.CHOICES, tuple(Row(
        (*context, *answer), tuple(range(4 + len(answer))), (0,) * (4 + len(answer)), 4, (0,) * 4 + answer,
        (0,) * 4 + (1,) * len(answer)) for answer in ((1, 2), (3, 4, 5))), 0)
    single = Sample("b", Kind.VERBALIZER, (Row((1, 2, 3), (0, 1, 2), (0, 0, 1), 2),), 0, verbalizer_ids=(5, 6))
    batch = batch_of([choices, single], config_of("glm-small"))
    assert together(map(size_of, ([choices], [single]))) == (*batch.tokens.shape, len(batch.places)) == (2, 9, 6)


CPU = Device("cpu", "", "cpu", 0, 20e9, {"fp32": 2e11}, 20e9, 20e9, "")


def test_time_grows_with_work():
    seconds = epoch_seconds(job(), CPU)
    assert epoch_seconds(job(Size(8, 256, 400)), CPU) > 1.5 * seconds
    assert 1.1 * seconds < epoch_seconds(job(is_checkpointed=True), CPU) < 1.6 * seconds
    assert 0.5 * seconds < epoch_seconds(job(learned=LORA), CPU) < 0.95 * seconds
    assert epoch_seconds(replace(job(), of_epoch=20), CPU) == pytest.approx(2 * seconds)


def advice(wanted: Job, free: float, batch_size: int = 4) -> list[str]:
    room = Room(free, 1e15, 1e15)
    choice = plan_fit.Choice(batch_size, "--seq-length")
    return plan_fit.ways(wanted, choice, lambda tried: plan_fit.lack(needs(tried), room) is None)


def test_advice_names_the_mildest_flags_that_suffice_with_what_they_save():
    whole = job(Size(64, 256, 3200))
    total = needs(whole).host
    assert advice(whole, total - 0.01 * GB, 64)[0].startswith("--checkpoint-activations (")
    some = advice(whole, 0.5 * total, 64)
    assert any(way.startswith("--gradient-accumulation-steps 4 (") for way in some), some
    assert any(way.startswith("--batch-size ") for way in some)
    assert advice(whole, 0.25 * GB, 64) == []
    both = advice(whole, 0.9 * GB, 64)
    assert both and all("--lora-rank 8" in way and " with " in way for way in both), both


def test_advice_holds():
    for free in (2, 6):
        for way in advice(job(Size(64, 256, 3200)), free * GB, 64):
            assert "(-" not in way


@pytest.fixture
def rows(tmp_path):
    (tmp_path / "reviews.yaml").write_text(
        'files: {train: train.jsonl}\ntext_a: "{review}"\nlabel: opinion\nlabels: [bad, good]\n'
        'verbalizers: {bad: " bad", good: " good"}\npatterns:\n- a: ["~{text_a}", " It was", _, "."]\n')
    lines = [{"review": "a bell " * (40 + number), "opinion": "bad"} for number in range(6)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return ["--task", str(tmp_path / "reviews.yaml"), "--cloze-eval", "--load", str(SMALL), "--epochs", "2",
            "--batch-size", "2"]


def test_a_training_that_cannot_fit_is_refused_before_it_loads_anything(rows, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plan_fit, "room_of", lambda device: Room(0.2 * GB, 1e15, 1e15))
    assert main(["train", *rows, "--save", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("error: this training needs about 0.") and "0.20 GB free" in said[-1]
    assert "--no-plan" in said[-1] and not (tmp_path / "run").exists()
    monkeypatch.setenv("LOCAL_RANK", "1")  # the first process of the host has looked
    plan_fit.require_fit(job(), plan_fit.Choice(4, None), "cpu")


def test_no_plan_starts_all_the_same(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(plan_fit, "room_of", lambda device: Room(0.2 * GB, 1e15, 1e15))
    assert main(["train", *rows, "--save", str(tmp_path / "run"), "--no-plan", "--train-iters", "1"]) == 0
    assert "no_plan" not in json.loads((tmp_path / "run" / "run.json").read_text())["settings"]


def test_the_plan_of_a_command_line(rows, capsys, monkeypatch):
    monkeypatch.setattr(plan_trial, "pace", lambda job, device: Pace())
    assert main(["plan", *rows, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] and found["rows"] == 2 and found["seconds"] > 0
    assert found["host"] == pytest.approx(sum(found[name] for name in (
        "weights", "gradients", "moments", "activations", "samples", "process")), rel=1e-6)
    assert main(["plan", "--load", str(SMALL), "--seq-length", "128", "--lora-rank", "4"]) == 0
    shown = capsys.readouterr().out
    assert "30,720 parameters learn: LoRA of rank 4" in shown and "4 rows of 128 tokens" in shown


def test_the_plan_for_another_device_that_is_too_small(capsys):
    assert main(["plan", "--load", str(SMALL), "--batch-size", "4096", "--seq-length", "512", "--device",
                 "rtx-3090"]) == 2
    shown = capsys.readouterr().out
    assert "TOO MUCH" in shown and "would fit with --" in shown
    assert main(["plan", "--load", str(SMALL), "--dtype", "float128"]) == 2
    assert "unknown dtype 'float128'" in capsys.readouterr().err
