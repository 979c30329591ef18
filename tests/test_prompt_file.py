"""Prompts as JSON lines: options and fields of their own, mistakes by line, and what of it is in results.jsonl."""

import json

import pytest

import glm
from commands import generate as command
from generation import SamplingParams, fill_blanks
from generation.params import Options
from generation.prompt_file import read_prompts
from runtime.errors import UserError
from tests.golden_data import SHAPE, TOKENIZER, TP1
from tests.test_generation_cli import MODEL

TEXT = "It was the best of times, it was [gMASK]"


def written(tmp_path, *objects):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(f"{one if isinstance(one, str) else json.dumps(one, ensure_ascii=False)}\n"
                            for one in objects), encoding="utf-8")
    return path


def test_a_line_has_options_of_its_own(tmp_path):
    base = Options().changed(top_k=1, max_gen_length=9, stop="x")
    plain, own, carried = read_prompts(written(
        tmp_path, {"prompt": "two\nlines"}, {"prompt": "b", "id": 7, "max_gen_length": 3, "stop": ["\n", "."]},
        {"prompt": "c", "id": "天", "source": {"page": 3}, "seed": None}), options=base)
    assert (plain.text, plain.id, plain.options, plain.fields) == ("two\nlines", None, base, {})
    assert own.options == base.changed(max_gen_length=3, stop=("\n", ".")) and own.id == "7"
    assert carried.options == base and carried.fields == {"source": {"page": 3}, "seed": None}


@pytest.mark.parametrize("line, message", [
    ("no json", "not valid JSON: Expecting value at column 1"),
    ("", "not valid JSON: Expecting value at column 1"),
    ("[1]", "the line is a list; it must be an object"),
    ({"text": "a"}, '"prompt" is null; it must be a text'),
    ({"prompt": ["a"]}, '"prompt" is a list; it must be a text'),
    ({"prompt": " "}, "the prompt is empty"),
    ({"prompt": "a [mask]"}, "unknown mask [mask], did you mean [MASK]?"),
    ({"prompt": "a", "id": True}, '"id" is true; it must be a text or a whole number'),
    ({"prompt": "a", "max_gen_lenght": 3}, "unknown option 'max_gen_lenght'; did you mean max_gen_length?"),
    ({"prompt": "a", "max_gen_length": "3"}, "max_gen_length '3': must be a whole number of at least 1"),
    ({"prompt": "a", "temperature": 0}, "temperature 0: must be greater than 0"),
    ({"prompt": "a", "stop": ["x", ""]}, "must be a text or a list of texts, none of them empty"),
    ({"prompt": "a", "num_beams": 3}, "num_beams is the same for all prompts of a run"),
    ('{"prompt": "a", "prompt": "b"}', "prompt"),
])
def test_a_faulty_line_is_noted_and_stops_no_other(tmp_path, line, message):
    bad, good = read_prompts(written(tmp_path, line, {"prompt": "a"}))
    assert message in bad.error and good.error is None


def test_ids_stand_in_the_objects(tmp_path):
    path = written(tmp_path, {"prompt": "a", "id": "x"}, {"prompt": "b", "id": "x"})
    assert [line.error for line in read_prompts(path)] == [None, "the id 'x' stands in line 1 too"]
    with pytest.raises(UserError, match='a line of .* has its "id" in its object'):
        read_prompts(path, with_id=True)


def test_fields_come_back_and_changed_ones_are_answered_anew(tmp_path, capsys):
    lines = [{"prompt": TEXT, "id": "short", "max_gen_length": 2, "group": 1},
             {"prompt": TEXT, "id": "drawn", "seed": 3, "max_gen_length": 5, "top_k": 0}, {"prompt": TEXT, "id": "run"}]
    path, out = written(tmp_path, *lines), tmp_path / "out"
    arguments = [*MODEL, "--input-source", str(path), "--output-path", str(out), "--top-k", "1"]
    arguments += ["--out-seq-length", "40"]

    def answers(*more):
        assert command.main([*arguments, *more]) == 0
        return [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]

    short, drawn, run = answers()
    assert short["fields"] == {"max_gen_length": 2, "group": 1} and "fields" not in run
    assert short["finish_reason"] == "length" and run["text"].startswith(short["text"])
    model, tokenizer = glm.load(TP1, tokenizer_path=TOKENIZER, **SHAPE)
    params = SamplingParams(top_p=0.7, seed=3, max_gen_length=5, out_seq_length=40)
    assert fill_blanks(model, tokenizer, [TEXT], params)[0].text == drawn["text"]
    written(tmp_path, lines[0] | {"max_gen_length": 3}, *lines[1:])
    capsys.readouterr()
    again = answers("--resume")
    assert again[1:] == [drawn, run] and again[0]["fields"]["max_gen_length"] == 3
    assert "1 of 3 prompts answered, 2 there already" in capsys.readouterr().out
