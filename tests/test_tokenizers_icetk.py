"""Golden ids and texts of the tokenizer, and its clear errors."""

import json
from pathlib import Path

import pytest

from glm.tokenizers.icetk import IcetkTokenizer, find_vocabulary
from runtime.errors import UserError

GOLDEN = Path(__file__).parent / "golden" / "tokenizer"
COMMANDS = json.loads((GOLDEN / "commands.json").read_text(encoding="utf-8"))


def read_lines(name):
    return [json.loads(line) for line in (GOLDEN / name).read_text(encoding="utf-8").splitlines()]


def test_encode_and_decode_equal_golden(tokenizer):
    cases = read_lines("cases.jsonl")
    assert len(cases) > 300
    for case in cases:
        options = case.get("options", {})
        assert tokenizer.encode(case["text"], **options) == case["ids"], case["text"]
        special = options.get("special_tokens", False)
        assert tokenizer.decode(case["ids"], special_tokens=special) == case["decoded"], case["text"]
        if "ice_ids" in case:
            assert tokenizer.encode(case["text"]) == case["ice_ids"]
            assert tokenizer.detokenize(case["ice_ids"]) == case["ice_detokenized"]


def test_decoding_of_any_ids_equals_golden(tokenizer):
    for case in read_lines("decode_cases.jsonl"):
        assert tokenizer.decode(case["ids"]) == case["decoded"], case["ids"]
        assert tokenizer.detokenize(case["ids"]) == case["ice_detokenized"], case["ids"]


def test_commands_equal_golden(tokenizer):
    for name, token in COMMANDS["commands"].items():
        assert tokenizer.command(name) == token
    assert tokenizer.num_tokens == COMMANDS["first_unused_id"]


def test_num_image_tokens_shifts_every_id(tokenizer):
    small = IcetkTokenizer(GOLDEN / "ice_text.model", num_image_tokens=0)
    assert small.encode("Hello 你好\n") == [token - 20000 for token in tokenizer.encode("Hello 你好\n")]
    assert small.command("[gMASK]") == 3001
    assert small.num_tokens == 3344


def test_ids_without_text_are_shown_not_fatal(tokenizer):
    image, unused = 5, tokenizer.num_tokens + 7
    assert tokenizer.decode([image, 20010, unused]) == "\ufffd\u7684\ufffd"
    with pytest.raises(UserError, match="-1 is no token id"):
        tokenizer.decode([-1])


def test_unknown_command_names_the_nearest(tokenizer):
    with pytest.raises(UserError, match=r"did you mean '\[gMASK\]'"):
        tokenizer.command("[gMask]")


def test_text_that_is_not_utf8(tokenizer):
    with pytest.raises(UserError, match="not valid UTF-8 at character 2"):
        tokenizer.encode("ab\udc80")


@pytest.mark.parametrize("content", [b"", b"not a vocabulary at all\n" * 9, b"\x00" * 64])
def test_file_that_is_no_vocabulary(tmp_path, content):
    path = tmp_path / "ice_text.model"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"ice_text\.model is not icetk's vocabulary"):
        IcetkTokenizer(path)


def test_truncated_vocabulary(tmp_path):
    path = tmp_path / "ice_text.model"
    path.write_bytes((GOLDEN / "ice_text.model").read_bytes()[:-1000])
    with pytest.raises(UserError, match="is not icetk's vocabulary .*: sentencepiece cannot read it; it is "):
        IcetkTokenizer(path)


def test_vocabulary_is_found_in_order(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    with pytest.raises(UserError, match="--tokenizer-path"):
        find_vocabulary(checkpoint)
    at_home = tmp_path / ".icetk_models" / "ice_text.model"
    at_home.parent.mkdir()
    at_home.touch()
    assert find_vocabulary(checkpoint) == at_home
    (checkpoint / "ice_text.model").touch()
    assert find_vocabulary(checkpoint) == checkpoint / "ice_text.model"
    assert find_vocabulary(checkpoint, at_home) == at_home
    assert find_vocabulary(checkpoint, at_home.parent) == at_home
    with pytest.raises(UserError, match=r"no vocabulary file at .*elsewhere"):
        find_vocabulary(checkpoint, tmp_path / "elsewhere")
