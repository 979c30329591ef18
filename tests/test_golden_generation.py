"""What the original generated from a small random model in float32: every token, score and text of it."""

import json

import pytest

import glm
from generation import BeamParams, SamplingParams, fill_blanks
from generation.batch import generate
from generation.blanks import split
from tests.golden_data import GOLDEN, SHAPE, TOKENIZER, TP1


def read(name: str) -> list[dict]:
    return [json.loads(line) for line in (GOLDEN / name).read_text(encoding="utf-8").splitlines()]


CASES = read("generation.jsonl")
BATCHES = read("generation_batch.jsonl")
ERRORS = [number for number, case in enumerate(CASES) if "error" in case]
# Where several blanks were filled by beam search the original showed earlier blanks of beams that its search had left.
OTHER_BLANKS = {26, 35, 43, 44, 46, 51, 56, 60}


@pytest.fixture(scope="module")
def loaded():
    return glm.load(TP1, tokenizer_path=TOKENIZER, **SHAPE)


def params_of(settings: dict):
    settings = {key: value for key, value in settings.items() if key not in ("deterministic", "consider_end",
                                                                              "batch_size")}
    kind = {"BaseStrategy": SamplingParams, "BeamSearchStrategy": BeamParams}[settings.pop("strategy")]
    return kind(**settings)


@pytest.fixture(scope="module")
def results(loaded):
    """All prompts of equal settings as one batch."""
    groups = {}
    for number, case in enumerate(CASES):
        groups.setdefault(json.dumps(case["settings"]), []).append(number)
    answers = {}
    for numbers in groups.values():
        texts = [CASES[number]["prompt"] for number in numbers]
        params = params_of(CASES[numbers[0]]["settings"])
        answers.update(zip(numbers, fill_blanks(*loaded, texts, params), strict=True))
    return answers


def in_the_original_s_spelling(case: dict, beam, tokenizer) -> str:
    """The whole answer: tabs, runs of blanks and commands as [name], no blank at the beginning of a stretch."""
    eos, blanks = tokenizer.command("eos"), iter(beam.blank_ids)
    stretches = split(case["prompt"], tokenizer).stretches
    ids = [*stretches[0], *(token for stretch in stretches[1:] for token in [*next(blanks), *stretch])]
    return tokenizer.detokenize(ids[:-1] if ids[-1:] == [eos] else ids)


@pytest.mark.parametrize("number", [n for n in range(len(CASES)) if n not in ERRORS])
def test_fill_blanks(loaded, results, number):
    case, result, tokenizer = CASES[number], results[number], loaded[1]
    calls = case["calls"]
    assert result.error is None
    assert result.input_ids == calls[0]["input_ids"]
    assert [beam.ids for beam in result.beams] == calls[-1]["output_ids"]
    if "scores" in calls[-1]:
        assert [beam.score for beam in result.beams] == pytest.approx(calls[-1]["scores"], abs=1e-3)
    assert [in_the_original_s_spelling(case, beam, tokenizer) for beam in result.beams] == case["answers"]
    assert result.text == result.beams[0].text
    spelled = [[tokenizer.detokenize(ids) for ids in beam.blank_ids] for beam in result.beams]
    for place, blanks in enumerate(case["blanks"]):
        is_other = place > 0 and number in OTHER_BLANKS
        assert spelled[place] == ([*spelled[0][:-1], blanks[-1]] if is_other else blanks)


@pytest.mark.parametrize("number", [4, 16, 35, 44, 72])
def test_one_by_one_as_in_the_batch(loaded, results, number):
    case = CASES[number]
    alone = fill_blanks(*loaded, [case["prompt"]], params_of(case["settings"]))[0]
    assert [beam.ids for beam in alone.beams] == [beam.ids for beam in results[number].beams]


def test_cases_in_which_the_original_fails(results):
    assert {number: CASES[number]["error"] for number in ERRORS} == {
        18: "IndexError", 31: "IndexError", 73: "AttributeError", 74: "TypeError", 75: "ValueError",
        77: "AttributeError"}


def test_two_masks_answered_with_nothing(results):
    """The original crashes on an answer without any token (lines 18 and 31)."""
    for number in (18, 31):
        result, calls = results[number], CASES[number]["calls"]
        assert result.error is None
        assert (result.text, result.blanks, result.finish_reason) == ("", ["", ""], "stop")
        assert [beam.ids for beam in result.beams] == calls[-1]["output_ids"]


@pytest.mark.parametrize("number, message", [
    (73, "no room for an answer: prompt and sop have 110 tokens, out_seq_length is 64"),
    (74, "no room for an answer: prompt and sop have 110 tokens, out_seq_length is 64"),
    (75, "text too long: the prompt has"),
    (77, "no room for an answer: prompt and sop have 14 tokens, out_seq_length is 14"),
])
def test_prompts_without_room_get_one_clear_message(results, number, message):
    assert results[number].error.startswith(message)
    assert (results[number].finish_reason, results[number].text, results[number].beams) == ("error", "", [])


def evaluation_arguments(case: dict, tokenizer) -> dict:
    """The arguments with which the evaluation generates."""
    contexts = [ids[:length] for ids, length in zip(case["tokens"], case["context_length"], strict=True)]
    mask = tokenizer.command("[MASK]")
    return dict(
        contexts=contexts,
        params=params_of({k: v for k, v in case["settings"].items() if k != "max_gen_length"}),
        end_tokens=(tokenizer.command("eop"), tokenizer.command("eos")),
        limits=[case["settings"]["max_gen_length"]] * len(contexts),
        shared_positions=None if case["use_task_mask"] else [ids.index(mask) for ids in contexts],
        unidirectional=case["unidirectional"],
        counted_lengths=[-(-len(ids) // 32) * 32 for ids in contexts])


def without_end(ids: list[int], ends) -> list[int]:
    return ids[:-1] if ids[-1] in ends else ids


@pytest.mark.parametrize("number", range(len(BATCHES)))
def test_generation_of_the_evaluation(loaded, number):
    model, tokenizer = loaded
    case = BATCHES[number]
    arguments = evaluation_arguments(case, tokenizer)
    answers = generate(model, **arguments)
    ends = arguments["end_tokens"]
    assert [[without_end(ids, ends) for ids, _ in row] for row in answers] == case["outputs"]
    if "scores" in case:
        assert [score for row in answers for _, score in row] == pytest.approx(
            [score for row in case["scores"] for score in row], abs=1e-3)


@pytest.mark.parametrize("number", range(len(BATCHES)))
def test_generation_of_the_evaluation_one_by_one(loaded, number):
    model, tokenizer = loaded
    case = BATCHES[number]
    arguments = evaluation_arguments(case, tokenizer)
    for row, expected in enumerate(case["outputs_one_by_one"]):
        single = arguments | {name: arguments[name] and arguments[name][row:row + 1]
                              for name in ("contexts", "limits", "shared_positions", "counted_lengths")}
        answer = generate(model, **single)[0]
        assert [without_end(ids, arguments["end_tokens"]) for ids, _ in answer] == expected
