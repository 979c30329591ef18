"""Chats of ChatGLM-6B and ChatGLM2-6B as the originals have them, and what models of other families say to it."""

import pytest

from generation import BeamParams, SamplingParams, chat, fill_blanks
from runtime.errors import UserError
from tests.golden_data import family_folder
from tests.golden_family import checkpoint, load, rows


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """(model, tokenizer) of a family. hf_chatglm is hf_chatglm_untied with its head tied."""
    from glm.tokenizers.opening import open_tokenizer

    made = {}

    def get(family):
        if family not in made:
            kind, folder, fields = {
                "glm": ("gpt2", "hf_gpt2", {}), "chatglm2": ("chatglm2", "hf_chatglm2", {}),
                "chatglm": ("chatglm", "hf_chatglm_untied", {"tie_word_embeddings": True})}[family]
            tokenizer = open_tokenizer(family_folder(kind, tmp_path_factory.mktemp(kind)))
            made[family] = load(checkpoint(family, folder), **fields), tokenizer
        return made[family]

    return get


@pytest.mark.parametrize("family", ["chatglm", "chatglm2"])
def test_chats(models, family):
    model, tokenizer = models(family)
    for row in rows(family, "chat"):
        messages = [{"role": role, "content": text} for round in row["history"]
                    for role, text in zip(("user", "assistant"), round, strict=True)]
        said = []
        reply = chat(model, tokenizer, [*messages, {"role": "user", "content": row["query"]}],
                     SamplingParams(top_k=1, out_seq_length=row["settings"]["max_length"],
                                    repetition_penalty=row["settings"].get("repetition_penalty", 1.0)),
                     on_text=said.append)
        assert (reply.input_ids, reply.output_ids) == (row["input_ids"], row["output_ids"])
        assert reply.text == "".join(said) == row["response"]
        assert reply.finish_reason == ("length" if len(reply.output_ids) + len(reply.input_ids)
                                       == row["settings"]["max_length"] else "stop")


def test_a_reply_of_beams_is_told_whole(models):
    said = []
    reply = chat(*models("chatglm2"), [{"role": "user", "content": "hello"}],
                 BeamParams(2, max_gen_length=6, min_gen_length=3), on_text=said.append)
    assert said == [reply.text] and reply.text


def test_masks_that_a_family_lacks(models):
    for family, text, what in (("chatglm", "a [sMASK] b", "this model fills no [sMASK]; it fills [MASK], [gMASK]"),
                               ("chatglm2", "a [MASK]", "this model fills no [MASK]; it writes on behind a text")):
        result, = fill_blanks(*models(family), [text], SamplingParams(top_k=1, max_gen_length=2))
        assert result.error == what


def test_masks_that_a_vocabulary_lacks(tmp_path):
    """GLM's models with BERT's vocabulary know [MASK] only, which then stands behind a text without any, too."""
    from generation.blanks import split
    from glm.config import ModelConfig
    from glm.tokenizers.opening import open_tokenizer

    tokenizer, form = open_tokenizer(family_folder("bert", tmp_path)), ModelConfig.from_name("glm-base").prompt_form
    with pytest.raises(UserError, match=r"this model fills no \[gMASK\]; it fills \[MASK\]"):
        split("a [gMASK]", tokenizer, form)
    assert split("a", tokenizer, form).kind == "[MASK]"


def test_a_reply_ends_before_a_stop_text(models):
    asked, params, heard = [{"role": "user", "content": "hello"}], SamplingParams(top_k=1, max_gen_length=24), []
    whole = chat(*models("chatglm2"), asked, params)
    stop = whole.text[len(whole.text) // 2:][:2]
    reply = chat(*models("chatglm2"), asked, params, stops=[stop, "zzz"], on_text=heard.append)
    assert reply.text == whole.text.partition(stop)[0] == "".join(heard) and reply.finish_reason == "stop"
    assert reply.output_ids == whole.output_ids[:len(reply.output_ids)] != whole.output_ids
    assert chat(*models("chatglm2"), asked, params, stops=stop).text == reply.text


def test_base_models_have_no_chat(models):
    with pytest.raises(UserError, match="a model of the family glm has no chat format; it fills blanks"):
        chat(*models("glm"), [{"role": "user", "content": "hello"}])


def test_chats_are_sampled_as_the_models_were_published(models):
    model, tokenizer = models("chatglm2")
    asked = [{"role": "user", "content": "hello"}]
    by_default = chat(model, tokenizer, asked, SamplingParams(0.8, top_p=0.8, seed=5, out_seq_length=40))
    assert by_default.output_ids == chat(model, tokenizer, asked, SamplingParams(0.8, top_p=0.8, seed=5,
                                                                                 out_seq_length=40)).output_ids
    assert chat(model, tokenizer, asked).output_ids
