"""Training a small model: the objective by hand, batches as pure functions, exact resume, a falling loss."""

import itertools
import json
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

import glm
from glm.tokenizers.icetk import IcetkTokenizer
from tests.faults import errors_of, started, wait_for
from tools import export_checkpoint, prepare_corpus, pretrain
from tools.preparing import texts
from tuning import corpus_run as run
from tuning.data.corpus import Mixture, cut, draw_row, draw_samples, open_corpus
from tuning.data.stretches import Ids, ids_of, poisson_spans, sentence_span, span_sample, suffix_sample
from tuning.from_scratch import blocked_of, by_row, side_by_side
from tuning.muon import moments_by_name
from tuning.schedules import LateDecay

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY = ROOT / "tests" / "golden" / "tokenizer" / "ice_text.model"
OTHER_VOCABULARY = ROOT / "checkpoints" / "glm-small" / "ice_text.model"

# a hand-made vocabulary of 40 ids: 10 is a full stop, 11 a line end, 30-39 begin no text without a blank (5)
MASK, GMASK, SMASK, SOP, EOP, EOS, BLANK = 20, 21, 22, 23, 24, 2, 5
FULL_STOP, LINE_END = 10, 11
IDS = Ids(MASK, GMASK, SMASK, SOP, EOP, EOS, BLANK, LINE_END,
          bare=np.array([token >= 30 or token in (FULL_STOP, LINE_END) for token in range(40)]),
          sentence_end=np.array([token in (FULL_STOP, LINE_END) for token in range(40)]))
X = -1  # no loss here


def arrays(sample):
    targets = [target if counts else X for target, counts in zip(sample.target, sample.loss_mask, strict=True)]
    return list(sample.input_ids), list(sample.places), targets, sample.sep


def test_gmask_sample_of_a_text_that_goes_on():
    text = np.array([12, 13, 14, 15, 16])
    assert arrays(suffix_sample(text, 2, False, IDS)) == (
        [12, 13, GMASK, SOP, 14, 15],
        [0, 1, 2, 3, 4, 5],
        [X, X, X, 14, 15, 16],
        3,
    )


def test_gmask_sample_of_a_text_that_ends_here():
    assert arrays(suffix_sample(np.array([12, 13, 14]), 0, True, IDS)) == (
        [GMASK, SOP, 12, 13, 14],
        [0, 1, 2, 3, 4],
        [X, 12, 13, 14, EOP],
        1,
    )


def test_mask_sample_has_each_answer_at_the_position_of_its_mask_and_shuffled():
    text = np.array([12, 13, 14, 15, 16, 17])
    sample = span_sample(text, [(1, 2), (4, 1)], np.array([1, 0]), MASK, IDS)
    assert arrays(sample) == (
        [12, MASK, 15, MASK, 17, EOS, SOP, 16, SOP, 13, 14],
        [0, 1, 2, 3, 4, 5, 3, 3, 1, 1, 1],
        [X, X, X, X, X, X, 16, EOP, 13, 14, EOP],
        6,
    )


def test_no_eos_when_the_text_ends_with_a_mask():
    sample = span_sample(np.array([12, 13]), [(1, 1)], np.array([0]), SMASK, IDS)
    assert arrays(sample) == ([12, SMASK, SOP, 13], [0, 1, 1, 1], [X, X, 13, EOP], 2)


def test_what_follows_a_mask_is_encoded_as_a_text_of_its_own():
    """A prompt is split at its masks and each piece encoded by itself, so a bare piece gets a blank in front."""
    sample = span_sample(np.array([12, 13, 30, 31]), [(1, 1)], np.array([0]), MASK, IDS)
    assert list(sample.input_ids) == [12, MASK, BLANK, 30, 31, EOS, SOP, 13]


def test_poisson_spans_cover_15_percent_and_never_touch():
    generator = np.random.default_rng(0)
    shares = []
    for _ in range(300):
        length = int(generator.integers(4, 200))
        spans = poisson_spans(length, generator)
        for (start, count), (following, _) in itertools.pairwise(spans):
            assert start + count < following
        assert spans[0][0] >= 0 and sum(spans[-1]) <= length and all(count >= 1 for _, count in spans)
        if length >= 100:
            shares.append(sum(count for _, count in spans) / length)
    assert np.mean(shares) == pytest.approx(0.15, abs=0.015)


def test_sentence_span_is_a_whole_sentence_without_its_line_end():
    text = np.array([12, 13, 14, FULL_STOP, 15, 16, 17, LINE_END, 18, 19])
    found = {sentence_span(text, IDS, np.random.default_rng(seed)) for seed in range(20)}
    assert found == {(0, 4), (4, 3)}


def test_packed_samples_see_part_a_and_their_own_left_and_nothing_of_each_other():
    rows = [[suffix_sample(np.array([12, 13]), 1, False, IDS), suffix_sample(np.array([14, 15]), 0, False, IDS)]]
    batch = side_by_side(rows, 7, "cpu")
    assert batch.tokens.tolist() == [[12, GMASK, SOP, GMASK, SOP, 14, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 2, 0]]
    assert batch.targets.tolist() == [[X, X, 13, X, 14, 15, X]]
    blocked = blocked_of(batch.segments, batch.context)
    assert ["".join(".x"[int(cell)] for cell in row) for row in blocked[0]] == [
        "..xxxxx",
        "..xxxxx",
        "...xxxx",
        "xxx.xxx",
        "xxx..xx",
        "xxx...x",
        "xxxxxx.",
    ]


def test_schedules():
    cosine = LateDecay(steps=101, warm_up=1, final=0.0)
    assert cosine.factor(0) == 1.0
    assert cosine.factor(50) == pytest.approx(0.5, abs=0.02)
    assert cosine.factor(100) == pytest.approx(0.0)
    assert [LateDecay(steps=100, warm_up=4).factor(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    late = LateDecay(steps=100, warm_up=4, decay_from=80, final=0.02)
    assert late.factor(79) == 1.0 and late.factor(99) == pytest.approx(0.02)
    # what was trained so far does not depend on where the end is set later
    assert [late.factor(step) for step in range(80)] == [
        LateDecay(steps=500, warm_up=4, decay_from=400).factor(step) for step in range(80)]


# A toy corpus and a toy model, through the command lines


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    words = random.Random(0)
    subjects, verbs, objects = ("The cat", "A dog", "My friend"), ("sees", "likes", "finds"), ("a house", "the sea")
    for language in ("en", "zh"):
        documents = []
        for number in range(60):
            sentences = [f"{words.choice(subjects)} {words.choice(verbs)} {words.choice(objects)} {number}."
                         for _ in range(words.randint(1, 12))]
            documents.append("\n".join(sentences))
        (folder / f"{language}_toy.txt").write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    prepare_corpus.main(["--vocabulary", str(VOCABULARY), "--inputs", str(folder / "en_toy.txt"),
                         str(folder / "zh_toy.txt"), "--output", str(folder / "corpus"), "--held-out", "0.1",
                         "--processes", "1"])
    return folder / "corpus"


def arguments(corpus, output, *more):
    return ["--corpus", str(corpus), "--vocabulary", str(VOCABULARY), "--output", str(output), "--num-layers", "2",
            "--hidden-size", "32", "--num-attention-heads", "2", "--inner-hidden-size", "48",
            "--steps", "3000", "--decay-from", "2500", "--warm-up", "10", "--rows", "2", "--width", "48", "--threads",
            "1", "--save-every", "7", "--evaluate-every", "20", "--evaluation-rows", "1", *more]


def losses(folder):
    return {entry["step"]: (entry["loss"], entry["norm"], entry.get("held_out"))
            for entry in run.read_log(folder / "log.jsonl")}


def test_corpus_keeps_documents_apart_by_their_hash(corpus):
    facts = json.loads((corpus / "corpus.json").read_text(encoding="utf-8"))["en_toy"]
    assert facts["language"] == "en"
    assert facts["train"]["documents"] + facts["held_out"]["documents"] == 60
    assert 1 <= facts["held_out"]["documents"] <= 20
    ids = np.load(corpus / "en_toy.npy")
    assert ids.dtype == np.uint16 and ids[-1] == EOS
    assert (ids == EOS).sum() == facts["train"]["documents"]
    assert texts.is_held_out("any text", 1.0) and not texts.is_held_out("any text", 0.0)


def test_batches_depend_on_seed_and_row_number_only(corpus):
    tokenizer = IcetkTokenizer(VOCABULARY, num_image_tokens=0)
    ids = ids_of(tokenizer)
    text = open_corpus(corpus, tokenizer.command("eos"), {})

    def drawn(seed, rows):
        return by_row([sample for row in rows for sample in draw_samples(text, seed, row, 64, Mixture(), ids)])

    first = drawn(3, range(40, 44))
    assert first == drawn(3, range(40, 44)) and first[2:] == drawn(3, [42, 43]) and first != drawn(4, range(40, 44))
    assert all(sum(len(sample.input_ids) for sample in draw_row(text, 3, row, 64, Mixture(), ids)) <= 64
               for row in range(50))


def test_a_document_that_fits_is_cut_whole(corpus):
    tokenizer = IcetkTokenizer(VOCABULARY, num_image_tokens=0)
    text = open_corpus(corpus, tokenizer.command("eos"), {}, language="en")
    whole, ends = cut(text, 0.0, 10_000, ids_of(tokenizer))
    assert ends and tokenizer.decode(whole.tolist()).startswith(("The cat", "A dog", "My friend"))
    part, ends = cut(text, 0.5, 20, ids_of(tokenizer))
    assert len(part) <= 20


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_run_resumes_with_the_same_loss_curve(corpus, tmp_path):
    process = started("tools.pretrain", arguments(corpus, tmp_path / "killed"), tmp_path / "log")  # of 3000 steps
    log = tmp_path / "killed" / "log.jsonl"
    wait_for(lambda: log.exists() and len(run.read_log(log)) >= 17, process)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, errors_of(tmp_path / "log")
    end = str(len(run.read_log(log)) + 30)
    pretrain.main(arguments(corpus, tmp_path / "killed", "--stop-at", end))
    pretrain.main(arguments(corpus, tmp_path / "whole", "--stop-at", end))
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert (tmp_path / "killed" / "loss.png").stat().st_size > 1000
    whole, killed = (torch.load(tmp_path / name / run.STATE, weights_only=True)["model"]
                     for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


@pytest.mark.parametrize("optimizer", ["muon", pytest.param("adamw", marks=pytest.mark.slow)])
def test_loss_falls_and_the_checkpoint_loads(corpus, tmp_path, optimizer, capsys):
    pretrain.main(arguments(corpus, tmp_path / "run", "--optimizer", optimizer, "--stop-at", "120", "--rows", "4",
                            "--matrix-rate", "0.01", "--rate", "0.01"))
    curve = [loss for loss, _, _ in losses(tmp_path / "run").values()]
    assert curve[0] == pytest.approx(np.log(3344), abs=0.3)
    assert np.mean(curve[-10:]) < 2.5
    pretrain.main(arguments(corpus, tmp_path / "run", "--optimizer", optimizer, "--evaluate-only"))
    assert "bits per character" in capsys.readouterr().out
    for change in (["--optimizer", "adamw" if optimizer == "muon" else "muon"], ["--inner-hidden-size", "64"]):
        with pytest.raises(SystemExit):
            pretrain.main(arguments(corpus, tmp_path / "run", "--optimizer", optimizer, *change))
        assert "another model or --optimizer" in capsys.readouterr().err
    export_checkpoint.main(["--run", str(tmp_path / "run"), "--vocabulary", str(VOCABULARY), "--output",
                            str(tmp_path / "checkpoint")])
    model, tokenizer = glm.load(tmp_path / "checkpoint")
    begin = tokenizer.encode("The cat sees")
    ids = [*begin, tokenizer.command("[gMASK]"), tokenizer.command("sop")]
    chances = model.logits(torch.tensor([ids]), torch.arange(len(ids))[None], None)[0, -1].softmax(-1)
    follow = [tokenizer.encode(f"The cat sees {words}")[len(begin)] for words in ("a house", "the sea")]
    assert tokenizer.decode(follow) == "a the" and chances[follow].sum() > 30 * len(follow) / len(chances)


@pytest.mark.parametrize("parts", [(["m", "n"], ["e", "v"]), (["m", "n", "e", "v"],)], ids=["muon", "adamw"])
def test_a_state_of_earlier_versions_whose_moments_have_no_names(parts):
    names = {"v": "norm.bias", "e": "word_embeddings.weight", "m": "layers.0.weight", "n": "layers.1.weight"}
    parameters = {name: torch.zeros((3,) if short == "v" else (3, 3)) for short, name in names.items()}
    saved = [{"state": {number: {"of": short} for number, short in enumerate(part)}} for part in parts]
    assert moments_by_name(parameters, saved) == {name: {"of": short} for short, name in names.items()}


def test_mistakes_are_told_in_one_line(corpus, tmp_path, capsys):
    for change, words in (
        (["--weights", "en_tois=2"], "en_tois"),
        (["--weights", "en_toy"], "NAME=FACTOR"),
        (["--vocab-size", "3000"], "3344 ids"),
        (["--corpus", str(tmp_path)], "prepare_corpus.py"),
        (["--hidden-size", "33"], "hidden_size 33"),
        (["--rows", "0"], "argument --rows: 0 is not a number of 1 or more"),
        (["--save-every", "0"], "argument --save-every: 0 "),
        (["--steps", "-2"], "argument --steps: -2 "),
        (["--rate", "nan"], "argument --rate: nan "),
        (["--mask-share", "2"], "argument --mask-share: 2 is not a share"),
        (["--mask-share", "0.6", "--smask-share", "0.5"], "--mask-share 0.6 and --smask-share 0.5"),
        (["--vocabulary", str(OTHER_VOCABULARY)], "en_toy of "),
    ):
        with pytest.raises(SystemExit) as stop:
            pretrain.main([*arguments(corpus, tmp_path / "run"), *change])
        assert stop.value.code == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ") and words in message and message.count("\n") == 1
