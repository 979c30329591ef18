"""What lies around the weights: the file `latest`, the shards' names, the vocabulary."""

import os
import shutil

import pytest
from hypothesis import strategies as st

from glm.checkpoint import find_shards, shard_name
from glm.shard import read_shard
from glm.tokenizers.icetk import IcetkTokenizer
from tests.fuzzing import disguises, fuzz, mutated, names, only_user_errors, texts
from tests.golden_data import TOKENIZER
from tests.tiny_checkpoints import tiny_checkpoint
from tools.converting import verify


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("good") / "tiny", 1) / "49300" / shard_name(0)


@fuzz(
    40,
    latest=st.one_of(names, texts, st.sampled_from(["49300", "49300\n", " 49300 ", "49301", "4930", "x" * 10**6])),
    files=st.lists(
        st.sampled_from(
            [
                "mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt", "mp_rank_1_model_states.pt",
                "mp_rank_٠٠_model_states.pt", "mp_rank_" + "9" * 200 + "_model_states.pt",
            ]
        ),
        unique=True,
    ),
)
def test_any_index(good, tmp_path_factory, latest, files):
    folder = tmp_path_factory.mktemp("index", numbered=True)
    (folder / "49300").mkdir()
    for name in files:
        os.symlink(good, folder / "49300" / name)
    shutil.copyfile(good.parent.parent / "model_config.json", folder / "model_config.json")
    (folder / "latest").write_bytes(latest.encode("utf-8", "surrogatepass"))
    with only_user_errors("checkpoints: index"):
        for path in find_shards(folder):
            assert path.parent.parent == folder
        verify.alone(folder)
    shutil.rmtree(folder)


@fuzz(40, start=disguises, rest=st.one_of(st.binary(max_size=50), st.just(b"49300")))
def test_files_that_begin_as_others_do(tmp_path_factory, start, rest):
    folder = tmp_path_factory.mktemp("disguised", numbered=True)
    (folder / "49300").mkdir()
    (folder / "latest").write_bytes(start + rest)
    (folder / "49300" / shard_name(0)).write_bytes(start + rest)
    with only_user_errors("checkpoints: index"):
        find_shards(folder)
    with only_user_errors("checkpoints: index"):
        read_shard(folder / "49300" / shard_name(0))
    shutil.rmtree(folder)


VOCABULARY = (TOKENIZER / "ice_text.model").read_bytes()


@fuzz(
    60,
    data=st.one_of(
        mutated(VOCABULARY),
        mutated(VOCABULARY[:400]).map(lambda new: new + VOCABULARY[400:]),
        mutated(VOCABULARY[-2000:]).map(lambda new: VOCABULARY[:-2000] + new),
        st.binary(max_size=200),
    ),
    text=texts,
)
def test_any_bytes_as_a_vocabulary(tmp_path_factory, data, text):
    path = tmp_path_factory.getbasetemp() / "ice_text.model"
    path.write_bytes(data)
    with only_user_errors("vocabulary files"):
        tokenizer = IcetkTokenizer(path)
        text = text.encode("utf-8", "ignore").decode() + " a 好 [MASK]\n"
        ids = tokenizer.encode(text) + tokenizer.encode(text, special_tokens=True)
        assert all(tokenizer.num_image_tokens <= token < tokenizer.num_tokens for token in ids)
        tokenizer.detokenize(ids)
        tokenizer.decode(ids)
