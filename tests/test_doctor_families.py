"""The doctor on folders of other families, Hugging Face's and Megatron's: each fault is one finding, in their terms."""

import shutil

import pytest

from tests.golden_data import FAMILY_TOKENIZERS, family_folder
from tests.golden_family import checkpoint
from tests.test_doctor_model import found

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
SECOND = "pytorch_model-00002-of-00002.bin"
INDEX = "pytorch_model.bin.index.json"


@pytest.fixture
def published(tmp_path):
    """Hugging Face's folder of a ChatGLM2-6B, weights in two files."""
    folder = shutil.copytree(checkpoint("chatglm2", "hf_chatglm2"), tmp_path / "chatglm2")
    shutil.copy(FAMILY_TOKENIZERS / "chatglm2" / "tokenizer.model", folder)
    return folder


def test_a_whole_published_folder_has_no_finding(published):
    assert found(published, degree=1) == []


@pytest.mark.parametrize("name, content, code, words, mend", [
    ("config.json", None, "checkpoint-config", "has no config.json", "copy config.json again"),
    ("config.json", POINTER, "checkpoint-config", "config.json: is a pointer of git-lfs", "git -C {} lfs pull"),
    ("config.json", b"{", "checkpoint-config", "config.json:1: not valid JSON", "copy config.json again"),
    ("config.json", b'{"model_type": "llama"}', "checkpoint-config", "model_type is 'llama'; served are glm",
     "a checkpoint of a family that is served"),
    (SECOND, None, "checkpoint", f"missing shard {{}}/{SECOND}", "python tools/verify_checkpoint.py {}"),
    (SECOND, POINTER, "checkpoint-headers", f"{SECOND} (70 bytes) is a pointer of git-lfs", "git -C {} lfs pull"),
    (SECOND, b"PK\x03\x04", "checkpoint-headers", f"{SECOND} (4 bytes) is truncated", "copy the file again"),
    (INDEX, None, "checkpoint", "but has none of model.safetensors", "copy the file again"),
    (INDEX, POINTER, "checkpoint", "index.json: is a pointer of git-lfs", "git -C {} lfs pull"),
    (INDEX, b"{}", "checkpoint", "must hold an object 'weight_map'", "copy the file again"),
    ("tokenizer.model", None, "tokenizer", "no vocabulary file at {}/tokenizer.model", "copy the tokenizer's files to"),
    ("tokenizer.model", POINTER, "tokenizer", "it is a pointer of git-lfs", "git -C {} lfs pull"),
])
def test_faults_of_published_folders(published, name, content, code, words, mend):
    """Each is one finding, in the folder's own terms."""
    if content is None:
        (published / name).unlink()
    else:
        (published / name).write_bytes(content)
    ((found_code, level, line),) = found(published, degree=1)
    assert (found_code, level) == (code, "error")
    assert words.format(published) in line and mend.format(published) in line.partition("mend it: ")[2]


def test_a_folder_of_megatron_s(tmp_path):
    folder = shutil.copytree(checkpoint("glm", "megatron_chinese_MP2"), tmp_path / "glm")
    heads = ("--num-attention-heads", "4", "--tokenizer-path", str(family_folder("chinese", tmp_path)))
    assert found(folder, *heads) == []
    ((code, _, line),) = found(folder)  # of the vocabulary nothing can be said yet
    assert code == "checkpoint-config" and "num_attention_heads not given" in line
    (folder / "12000" / "mp_rank_01_model_states.pt").write_bytes(POINTER)
    ((code, _, line),) = found(folder, *heads)
    assert code == "checkpoint-headers" and "is a pointer of git-lfs" in line and f"git -C {folder} lfs pull" in line
