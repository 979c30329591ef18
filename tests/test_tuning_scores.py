"""What the model makes of samples: scores, predictions and losses as the originals', by rows of their own or shared."""

import dataclasses
import functools

import pytest
import torch

from glm.config import ModelConfig
from glm.dropout import Dropout
from glm.model import GLM
from runtime import parallel
from runtime.errors import UserError
from tests.golden_finetune import KIT, lines
from tuning.batch import batch_of
from tuning.data.sample import Kind, Row, Sample
from tuning.losses import loss_of, loss_of_scores
from tuning.model import Head, PromptEncoder, Tuned, initialise, load
from tuning.options import CheckpointOptions, PartsOptions
from tuning.scores import scores_of

SCORES, LOSSES = dict(atol=1e-3, rtol=0), dict(rtol=1e-4, atol=1e-5)
HAS_MODEL = (KIT / "checkpoints" / "glm-tiny").is_dir()
KINDS = {"single": Kind.VERBALIZER, "choices": Kind.CHOICES, "generative": Kind.GENERATIVE, "head": Kind.HEAD}


def row_of(context, answer=None, prompts=()):
    """A row as the kit writes one: its context, and what stands behind it."""
    answer, c = answer or {}, len(context)
    ids = [*context, *answer.get("answer", [])]
    return Row(tuple(ids), (*range(c), *answer.get("position", [])), (*[0] * c, *answer.get("block", [])), c,
               (*[0] * c, *answer.get("target", [])), (*[0] * c, *answer.get("loss_mask", [])), (), tuple(prompts))


def sample_of(line, kind=None):
    kind = kind or KINDS[line["kind"]]
    choices, prompts = line.get("choices") or [line], line.get("prompt_pos", ())
    rows = [row_of(each.get("context", line.get("context")), each, prompts[number] if "choices" in line and prompts
                   else prompts) for number, each in enumerate(choices)]
    return Sample(line["guid"], kind, tuple(rows), line.get("label"), tuple(line.get("verbalizer_ids", ())),
                  tuple(line.get("segment_id", ())), "choices" in line)


@functools.cache
def tuned(head=None, prompt=None):
    head, prompt = (None if name is None else KIT / "checkpoints" / name for name in (head, prompt))
    return load(CheckpointOptions(load=KIT / "checkpoints" / "glm-tiny"), PartsOptions(head, prompt))


def cases():
    """Results of the kit that have samples written down."""
    for result in lines("expected/superglue/results.jsonl") if HAS_MODEL else []:
        variant = result["variant"]
        if ("candidates" in variant and result["pattern"] != 2) or (variant, result["task"]) == (
                "cloze, prompt none 3 prefix 0", "rte"):
            continue  # no samples are written down
        if "error" in result or "for_train" in variant or "multi_token" in variant or "no_block" in variant:
            continue
        yield pytest.param(result, id=f"{result['task']} {variant} {result['pattern']} {result['split']}")


def samples_of(result):
    variant, task = result["variant"], result["task"]
    folder = {"copa": "COPA", "rte": "RTE", "cb": "CB", "wic": "WiC", "boolq": "BoolQ", "multirc": "MultiRC",
              "record": "ReCoRD", "wsc": "WSC"}[task]
    name = ("head" if variant.startswith("head") else "prompt" if "prompt" in variant
            else "COPA.segment_length_3" if "segment" in variant
            else "WSC-negative" if "candidates" in variant else folder)
    found = []
    for line in lines(f"expected/superglue/{name}.samples.jsonl"):
        same = (line.get("task", task) == task and line["split"] == result["split"] and "error" not in line
                and line["seq_length"] == result["seq_length"] and line.get("pattern") == result["pattern"])
        if "prompt" in variant and same:
            same = variant.endswith(f"prompt {line['prompt_func']} {line['num_prompt_tokens']} "
                                    f"prefix {line['prefix_prompt']}")
        if same:
            found.append(sample_of(line, Kind.HEAD if name == "head" else None))
    return found


@pytest.mark.parametrize("result", list(cases()))
def test_scores_and_losses_of_the_original(result):
    variant, samples = result["variant"], samples_of(result)
    head = f"head_{variant.split()[1].strip(',')}.pt" if variant.startswith("head") else None
    count = (sum(map(int, (variant.split()[-3], variant.split()[-1]))) if "prompt" in variant else 0)
    prompt = f"prompt_{variant.split()[-4]}_{count}.pt" if count else None
    pool = variant.split()[-1] if head else "cls"
    penalty = float(variant.split()[-1]) if "length_penalty" in variant else float("candidates" in variant)
    model = tuned(head, prompt)
    with torch.no_grad():
        batches = [batch_of(samples[begin:begin + 4], model.model.config, pool=pool)
                   for begin in range(0, len(samples), 4)]
        found = [scores_of(model, batch, penalty) for batch in batches]
    rows = [row for each in found for row in each.plain.split(list(each.widths))]
    assert samples
    for sample, row in zip(samples, rows, strict=True):
        wanted = result.get("scores", {}).get(sample.guid)
        if wanted is None:
            assert sample.kind is Kind.GENERATIVE
        elif not sample.segment_id and result["split"] == "dev":
            torch.testing.assert_close(row, torch.tensor(wanted), **SCORES)
        elif sample.segment_id:
            pieces = torch.zeros(len(row)).index_add(0, torch.tensor(sample.segment_id), torch.tensor(wanted))
            torch.testing.assert_close(row, pieces, **SCORES)
    for name, wanted in result["losses"].items():
        if [sample.guid for sample in samples] == result["guids"]:
            losses = [loss_of_scores(scores, batch, name) for scores, batch in zip(found, batches, strict=True)]
            torch.testing.assert_close(torch.stack(losses), torch.tensor(wanted), **LOSSES)
    if "scores" not in result:  # WSC without candidates: right where every token is
        right = {sample.guid: int(each) for sample, each in zip(samples, torch.cat([f.is_right for f in found]),
                                                                strict=True)}
        assert right == {guid: result["predictions"][guid] for guid in right}


# A small model of random weights: what must hold of any.

TINY = ModelConfig(num_layers=2, hidden_size=16, num_attention_heads=2, inner_hidden_size=32, vocab_size=50,
                   max_sequence_length=64, position_encoding_2d=True, num_image_tokens=0, family="glm", gelu="tanh")
SHAPES = {"glm": {}, "chatglm": {"rotary_table": "half_inv_freq"}, "glm-130b": {"gelu": "exact"},
          "chatglm2": {"gelu": "exact", "position_encoding_2d": False, "num_key_value_groups": 1,
                       "tie_word_embeddings": False}}


@functools.cache
def tiny(family="glm", kind=None, labels=3):
    if not parallel.is_started():
        parallel.start()
    model = GLM(dataclasses.replace(TINY, family=family, **SHAPES[family]), skip_init=False)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    made = Tuned(model, Head(16, labels), None if kind is None else PromptEncoder(16, 3, kind))
    for part in (made.head, made.prompt):
        if part is not None:
            initialise(part, 3)
    made.learn(lambda name: True)
    return made


def choice(context, answer, place=1, prompts=()):
    return row_of(context, {"answer": [40, *answer[:-1]], "position": [place] * len(answer),
                            "block": list(range(1, len(answer) + 1)), "target": answer,
                            "loss_mask": [1] * len(answer)}, prompts)


def choices(*answers, context=(1, 2, 3, 4), label=0, guid="a", prompts=()):
    return Sample(guid, Kind.CHOICES, tuple(choice(list(context), list(each), prompts=prompts) for each in answers),
                  label, has_choices=True)


SAMPLES = [choices([5, 6, 41], [7, 41], [8, 9, 10, 41], label=1), choices([11, 41], context=(3, 1)),
           choices([12, 13, 41], [14, 41], context=(9, 8, 7, 6, 5, 4), guid="b")]


@pytest.mark.parametrize("family", SHAPES)
def test_choices_that_share_their_context_score_as_alone_and_in_any_batch(family):
    model = tiny(family)
    together = batch_of(SAMPLES, model.model.config)
    assert together.tokens.shape[0] == len(SAMPLES)  # a row each
    alone = [Sample(sample.guid, Kind.CHOICES, (row,), 0) for sample in SAMPLES for row in sample.rows]
    with torch.no_grad():
        found = scores_of(model, together).values
        for number, sample in enumerate(alone):
            one = scores_of(model, batch_of([sample], model.model.config, width=20)).values
            torch.testing.assert_close(one[0], found[number], atol=1e-4, rtol=0)


def test_choices_of_unlike_contexts_have_rows_of_their_own():
    sample = Sample("a", Kind.CHOICES, (choice([1, 2], [5, 41]), choice([1, 3], [6, 41])), 0)
    assert batch_of([sample], TINY).tokens.shape[0] == 2


def gradients(model, samples, **how):
    model.zero_grad()
    loss = loss_of(model, batch_of(samples, model.model.config), **how)
    loss.backward()
    return loss.item(), {name: parameter.grad.clone() for name, parameter in model.named().items()
                         if parameter.grad is not None}


@pytest.mark.parametrize("family", SHAPES)
def test_layers_that_are_computed_again_give_the_same_gradients_with_dropout_too(family):
    model, drop = tiny(family), Dropout(0.2, 0.3, 0.1, seed=5, step=2)
    plain = gradients(model, SAMPLES, dropout=drop)
    model.is_checkpointed = True
    again = gradients(model, SAMPLES, dropout=drop)
    model.is_checkpointed = False
    assert plain[0] == again[0] != gradients(model, SAMPLES)[0]
    assert plain[0] != gradients(model, SAMPLES, dropout=dataclasses.replace(drop, step=3))[0]
    for name, each in plain[1].items():
        torch.testing.assert_close(each, again[1][name])


HEAD_SAMPLES = [Sample(guid, Kind.HEAD, (row_of(context),), 1) for guid, context in (("a", [1, 2, 3]), ("b", [4, 5]))]


@pytest.mark.parametrize("samples", [SAMPLES, HEAD_SAMPLES], ids=["choices", "classification head"])
def test_dropout_is_that_of_a_row_however_a_step_is_cut(samples):
    model, drop = tiny(), Dropout(0.2, 0.3, 0.1, seed=5, step=2)
    width = batch_of(samples, TINY).tokens.shape[1]
    with torch.no_grad():
        whole = scores_of(model, batch_of(samples, TINY), dropout=drop).values
        parts = [scores_of(model, batch_of([sample], TINY, first=number, width=width), dropout=drop).values
                 for number, sample in enumerate(samples)]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_a_classification_head_has_a_dropout_of_its_own():
    model, batch = tiny(), batch_of(HEAD_SAMPLES, TINY)
    with torch.no_grad():
        plain, dropped = (scores_of(model, batch, dropout=Dropout(0, 0, share, seed=5, step=2)).values
                          for share in (0.0, 0.5))
    assert plain.shape == dropped.shape and (plain != dropped).all()


def test_dropout_keeps_the_mean():
    x = torch.ones(2, 300, 40)
    assert Dropout(0.25, 0, 0, seed=1, step=0, prefix_share=0.0).prefix(x) is x
    assert not Dropout(0, 0, 0, seed=1, step=0, prefix_share=0.25).prefix(x).all()
    found = Dropout(0.25, 0, 0, seed=1, step=0, rows=(0, 1)).hidden(x, 0, "mlp", 300)
    assert found.unique().tolist() == pytest.approx([0, 4 / 3]) and abs(found.mean() - 1) < 0.02
    assert not torch.equal(found[0], found[1])


def test_a_rank_keeps_what_is_dropped_of_its_own_heads(monkeypatch):
    def kept(rank, size):
        monkeypatch.setattr(parallel, "size", lambda: size)
        monkeypatch.setattr(parallel, "rank", lambda: rank)
        return Dropout(0, 0.3, 0, seed=1, step=0, rows=(4,)).attention(2, 6, (5, 7), torch.device("cpu")).kept
    parts = [kept(rank, 3) for rank in range(3)]
    assert torch.equal(torch.cat(parts, dim=1), kept(0, 1))
    assert all(part.untyped_storage().nbytes() == part.numel() == 2 * 5 * 7 for part in parts)


@pytest.mark.parametrize("kind", ["lstm", "mlp", "none"])
def test_a_continuous_prompt_stands_for_the_words_and_learns(kind):
    model = tiny(kind=kind)
    prompted = [choices([5, 41], [6, 41], context=(1, 0, 3, 0, 0), prompts=(1, 3, 4))]
    _, found = gradients(model, prompted)
    assert {name for name in model.named() if name.startswith("prompt_spell.")} <= set(found)
    with torch.no_grad():
        before = model.hidden_states(batch_of(prompted, TINY))
        model.model.transformer.word_embeddings.weight[0] += 1  # the id in their places is not read
        assert torch.equal(model.hidden_states(batch_of(prompted, TINY)), before)
    with pytest.raises(UserError, match="the prompt encoder has 3 tokens, but the samples have 4 places"):
        loss_of(model, batch_of([choices([5, 41], context=(0, 0, 0, 0), prompts=(0, 1, 2, 3))], TINY))
    with pytest.raises(UserError, match="--prompt-encoder FILE"):
        loss_of(tiny(), batch_of(prompted, TINY))


def test_the_losses_of_scores():
    scores, labels = [torch.tensor([1.0, 2.0, 0.5]), torch.tensor([0.0, -1.0])], [0, 1]
    from tuning.losses import choices_loss

    softmax = torch.stack([torch.log_softmax(row, 0)[label] for row, label in zip(scores, labels, strict=True)])
    wanted = {"cross_entropy": -softmax.mean(), "hinge": torch.tensor((2 + 0.5 + 2) / 2),
              "generative": torch.tensor(0.0), "mix": -softmax.mean(), "adapet": torch.tensor((1.5 + 1) / 2)}
    for name, value in wanted.items():
        torch.testing.assert_close(choices_loss(scores, labels, name), value)
    with pytest.raises(UserError, match="there is no loss softmax"):
        choices_loss(scores, labels, "softmax")


def test_the_loss_of_tokens_with_smoothing_is_torch_s():
    row = choice([1, 2, 3], [5, 6, 41])
    batch = batch_of([Sample("a", Kind.SEQ2SEQ, (row,))], TINY)
    with torch.no_grad():
        logits = tiny().model.logits(batch.tokens, batch.position_ids, batch.blocked)[0, 3:]
        for smoothing in (0.0, 0.1):
            wanted = torch.nn.functional.cross_entropy(logits, torch.tensor([5, 6, 41]), label_smoothing=smoothing)
            torch.testing.assert_close(loss_of(tiny(), batch, label_smoothing=smoothing), wanted)


def test_only_what_is_chosen_learns():
    model = tiny(labels=2)
    assert set(model.learn(lambda name: name.startswith("pool_layer"))) == {"pool_layer.weight", "pool_layer.bias"}
    sample = Sample("a", Kind.HEAD, (row_of([1, 2, 3]),), 1)
    _, found = gradients(model, [sample])
    assert set(found) == {"pool_layer.weight", "pool_layer.bias"}
    assert scores_of(model, batch_of([sample], TINY, pool="start")).values.shape == (2,)


def test_ids_and_heads_of_another_model():
    from tuning.evaluate import check_head

    with pytest.raises(UserError, match="has the id 77, but the model's vocabulary has 50"):
        batch_of([choices([5, 77])], TINY)
    labelled = Sample("a", Kind.HEAD, (row_of([1, 2]),), 2)
    check_head(Head(16, 3), [labelled])
    for head, sample, message in ((Head(16, 2), labelled, "a has the label number 2"),
                                  (Head(16, 1), labelled, "labels, which need one each"),
                                  (Head(16, 2), dataclasses.replace(labelled, has_choices=True), "which need 1")):
        with pytest.raises(UserError, match=message):
            check_head(head, [sample])


def test_a_sample_without_a_label_has_no_loss():
    with pytest.raises(UserError, match="a has no label"):
        loss_of(tiny(), batch_of([choices([5, 41], label=None)], TINY))
