"""A run may be gone on with by a version that has an option more or less: what is at its default is no difference."""

import argparse
import dataclasses
import json

import pytest

from commands.evaluate import output_folder, parse, parser
from generation import SamplingParams
from generation.prompt_file import PromptLine
from generation.records import Results
from runtime.errors import UserError
from runtime.files import unusual, usual
from tools.converting import manifest

Newer = dataclasses.make_dataclass("Newer", [("min_p", float, 0.0)], bases=(SamplingParams,), frozen=True)
LINE = {"index": 0, "prompt": "a", "text": "a b", "blanks": ["b"], "beams": [], "finish_reason": "stop"}


def resume(folder, earlier, now) -> None:
    """One answer of a run with the parameters `earlier` is there; a run with the parameters `now` goes on."""
    (folder / "results.jsonl").write_text(json.dumps(LINE) + "\n")
    (folder / "settings.json").write_text(json.dumps({"facts": unusual(earlier)}))
    with Results(folder, [PromptLine(0, 1, "a")], resume=True) as results:
        results.open(unusual(now), usual(type(now)))
        assert list(results.done) == [0]


def test_a_version_more_or_less_goes_on(tmp_path):
    resume(tmp_path, SamplingParams(top_p=0.7), Newer(top_p=0.7))
    resume(tmp_path, Newer(top_p=0.7), SamplingParams(top_p=0.7))
    resume(tmp_path, SamplingParams(), SamplingParams(temperature=1.0))


@pytest.mark.parametrize("earlier, now, message", [
    (SamplingParams(), Newer(min_p=0.1), "the earlier run had min_p 0.0, this one has 0.1"),
    (Newer(min_p=0.1), SamplingParams(), "the earlier run had min_p 0.1, this one has null"),
    (Newer(min_p=0.1), Newer(min_p=0.2), "the earlier run had min_p 0.1, this one has 0.2"),
    (SamplingParams(temperature=0.7), SamplingParams(), "the earlier run had temperature 0.7, this one has 1.0"),
])
def test_another_value_is_refused_as_ever(tmp_path, earlier, now, message):
    with pytest.raises(UserError, match=message):
        resume(tmp_path, earlier, now)


def test_the_folder_of_an_evaluation_does_not_move_when_there_is_a_flag_more(monkeypatch):
    before = output_folder(parse(["tasks/quickstart", "--limit", "3"]))

    def with_a_flag_more() -> argparse.ArgumentParser:
        found = parser()
        found.add_argument("--newer", type=int)
        found.add_argument("--newest", action="store_true")
        return found

    monkeypatch.setattr("commands.evaluate.parser", with_a_flag_more)
    assert output_folder(parse(["tasks/quickstart", "--limit", "3"])) == before
    assert output_folder(parse(["tasks/quickstart", "--limit", "3", "--newer", "1"])) != before


@pytest.mark.parametrize("more, less", [({"dither": False, "bins": None}, {}), ({}, {"dither": False}), ({}, {})])
def test_a_conversion_goes_on(tmp_path, more, less):
    wish = {"target_tp": 2, "quantization_bit_width": None}
    with pytest.raises(KeyboardInterrupt), manifest.opened(tmp_path, wish | less, "1"):
        raise KeyboardInterrupt
    with manifest.opened(tmp_path, wish | more, "1"):
        pass
    with pytest.raises(UserError, match="an unfinished conversion with another dither"), \
            manifest.opened(tmp_path, wish | {"dither": True}, "1"):
        pass
