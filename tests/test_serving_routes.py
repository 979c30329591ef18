"""The server's routes, over a real socket, with the embedded model: what is asked is what comes back."""

import asyncio
import math

import pytest

from serving.streams import Stream
from tests.serving_helper import running

PROMPT = "He put his hand in his pocket and took out"
GREEDY = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def server():
    with running("--default-max-tokens", "16") as found:
        yield found


def texts(answer):
    return [choice["text"] for choice in answer["choices"]]


def test_it_says_what_it_is(server):
    assert server.ask("GET", "/health")[::2] == (200, {"status": "ok"})
    assert server.ask("GET", "/live")[0] == 200
    listed = server.ask("GET", "/v1/models")[2]["data"]
    assert [one["id"] for one in listed] == ["glm-small"]
    assert (listed[0]["max_model_len"], listed[0]["chat_format"]) == (512, None)
    assert server.ask("GET", "/v1/models/glm-small")[2] == listed[0]


class TestCompletions:
    def test_an_answer(self, server):
        answer = server.post("/v1/completions", prompt=PROMPT, model="glm-small", **GREEDY)
        assert answer["object"] == "text_completion" and answer["id"].startswith("cmpl-")
        assert answer["system_fingerprint"].startswith("glm-")
        choice, = answer["choices"]
        assert choice["text"].startswith(" his") and choice["logprobs"] is None
        assert choice["finish_reason"] in ("stop", "length")
        asked = server.post("/tokenize", prompt=PROMPT)
        assert answer["usage"]["prompt_tokens"] == asked["count"]
        assert answer["usage"]["total_tokens"] == asked["count"] + answer["usage"]["completion_tokens"]

    def test_ids_are_as_good_as_text(self, server):
        ids = server.post("/tokenize", prompt=PROMPT)["tokens"]
        assert texts(server.post("/v1/completions", prompt=ids, **GREEDY)) == texts(
            server.post("/v1/completions", prompt=PROMPT, **GREEDY))

    def test_what_is_behind_a_blank_in_the_prompt_has_none_of_its_own(self, server):
        text, = texts(server.post("/v1/completions", prompt=f"{PROMPT} ", **GREEDY))
        assert text[0] != " "
        assert texts(server.post("/v1/completions", prompt=PROMPT, echo=True, **GREEDY))[0].startswith(f"{PROMPT} ")

    def test_a_list_and_n_are_prompt_by_prompt(self, server):
        answer = server.post("/v1/completions", prompt=["The house", PROMPT], n=2, seed=5, max_tokens=4)
        assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
        alone = [texts(server.post("/v1/completions", prompt=prompt, seed=seed, max_tokens=4))[0]
                 for prompt in ("The house", PROMPT) for seed in (5, 6)]
        assert texts(answer) == alone

    def test_without_a_seed_choices_differ(self, server):
        assert len(set(texts(server.post("/v1/completions", prompt="The", n=4, max_tokens=16)))) > 1

    def test_an_empty_prompt_and_a_suffix(self, server):
        assert texts(server.post("/v1/completions", prompt="", seed=1, max_tokens=6))[0]
        between, = texts(server.post("/v1/completions", prompt="The town was founded in", suffix=" and is small.",
                                     **GREEDY))
        filled = server.post("/v1/fill", text="The town was founded in[MASK] and is small.", **GREEDY)
        assert filled["results"][0]["text"] == f"The town was founded in{between} and is small."

    def test_stops(self, server):
        whole, = texts(server.post("/v1/completions", prompt=PROMPT, **GREEDY))
        stop = whole[8:13]  # across tokens
        for more in ({}, {"stream": True}):
            if more:
                events = server.stream("/v1/completions", prompt=PROMPT, stop=["never", stop], **GREEDY)
                text = "".join(event["choices"][0]["text"] for event in events)
                reason = events[-1]["choices"][0]["finish_reason"]
            else:
                choice, = server.post("/v1/completions", prompt=PROMPT, stop=stop, **GREEDY)["choices"]
                text, reason = choice["text"], choice["finish_reason"]
            assert (text, reason) == (whole[:whole.index(stop)], "stop")

    def test_streams_say_what_whole_answers_say(self, server):
        asked = {"prompt": ["The", PROMPT], "n": 2, "seed": 9, "max_tokens": 12, "echo": True}
        whole = server.post("/v1/completions", **asked)
        events = server.stream("/v1/completions", **asked, stream_options={"include_usage": True})
        assert len({(event["id"], event["created"]) for event in events}) == 1
        assert events[-1]["choices"] == [] and events[-1]["usage"] == whole["usage"]
        assert all(event["usage"] is None for event in events[:-1])
        for choice in whole["choices"]:
            mine = [event["choices"][0] for event in events[:-1] if event["choices"][0]["index"] == choice["index"]]
            assert "".join(one["text"] for one in mine) == choice["text"]
            assert [one["finish_reason"] for one in mine] == [None] * (len(mine) - 1) + [choice["finish_reason"]]
        assert "usage" not in server.stream("/v1/completions", prompt="The", max_tokens=2)[0]

    def test_more_than_fits_is_cut(self, server):
        answer = server.post("/v1/completions", prompt="The", max_tokens=1_000_000, min_tokens=505, seed=1)
        assert answer["choices"][0]["finish_reason"] == "length" and answer["usage"]["total_tokens"] < 512

    def test_fields_that_mean_nothing_are_told(self, server):
        _, headers, _ = server.ask("POST", "/v1/completions", {
            "prompt": "The", "max_tokens": 1, "user": "me", "frequency_penalty": 0, "logit_bias": {}, "best_of": 1,
            "zebra": 1})
        assert headers["x-glm-ignored"] == "zebra"

    def test_an_answer_that_is_ready_before_its_stream_begins_is_streamed_whole(self, server, monkeypatch):
        begin = Stream.begin

        async def begin_late(stream):
            await begin(stream)
            while server.server.engine.units:
                await asyncio.sleep(0.001)

        monkeypatch.setattr(Stream, "begin", begin_late)
        events = server.stream("/v1/completions", prompt=PROMPT, **GREEDY)
        assert "".join(event["choices"][0]["text"] for event in events) == texts(
            server.post("/v1/completions", prompt=PROMPT, **GREEDY))[0]
        assert events[-1]["choices"][0]["finish_reason"] in ("stop", "length")


class TestLogProbabilities:
    def test_of_an_answer(self, server):
        answer = server.post("/v1/completions", prompt=PROMPT, logprobs=3, **GREEDY)
        choice = answer["choices"][0]
        found = choice["logprobs"]
        count = answer["usage"]["completion_tokens"]
        assert [len(found[name]) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")] == [count] * 4
        for token, value, top in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True):
            assert top[token] == value == max(top.values())  # greedy
            assert len(top) == 3
        assert found["text_offset"][0] == len(PROMPT)
        assert "".join(found["tokens"]) == choice["text"]

    def test_they_are_the_model_s_own(self, server):
        """Not those of a temperature, nor of what top-k leaves."""
        plain = server.post("/v1/completions", prompt=PROMPT, logprobs=2, max_tokens=1, temperature=0)
        drawn = server.post("/v1/completions", prompt=PROMPT, logprobs=2, max_tokens=1, temperature=0.2, top_k=2,
                            seed=1)
        first, other = (answer["choices"][0]["logprobs"]["top_logprobs"][0] for answer in (plain, drawn))
        assert other == {name: pytest.approx(first[name], abs=1e-4) for name in other}

    def test_of_a_prompt(self, server):
        ids = server.post("/tokenize", prompt=PROMPT)["tokens"]
        scored = server.post("/v1/completions", prompt=PROMPT, echo=True, logprobs=1, max_tokens=0)
        found = scored["choices"][0]["logprobs"]
        assert scored["choices"][0]["text"] == PROMPT and scored["usage"]["completion_tokens"] == 0
        assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
        assert len(found["tokens"]) == len(ids)
        assert found["token_logprobs"][1:] == pytest.approx(model_log_probabilities(server, ids)[1:], abs=1e-4)
        more = server.post("/v1/completions", prompt=ids, echo=True, logprobs=1, max_tokens=3, temperature=0)
        lists = more["choices"][0]["logprobs"]
        assert len(lists["tokens"]) == len(ids) + more["usage"]["completion_tokens"]
        assert lists["token_logprobs"][1:len(ids)] == pytest.approx(found["token_logprobs"][1:], abs=1e-6)

    def test_of_a_prompt_from_its_first_token(self, server):
        ids = server.post("/tokenize", prompt=PROMPT)["tokens"]
        sop, = server.post("/tokenize", prompt="<sop>")["tokens"]
        found = server.post("/v1/completions", prompt=[sop, *ids], echo=True, logprobs=1, max_tokens=1,
                            temperature=0)["choices"][0]["logprobs"]
        assert found["token_logprobs"][1:len(ids) + 1] == pytest.approx(model_log_probabilities(server, ids), abs=1e-4)

    def test_streamed(self, server):
        asked = {"prompt": PROMPT, "echo": True, "logprobs": 2, **GREEDY}
        whole = server.post("/v1/completions", **asked)["choices"][0]["logprobs"]
        events = server.stream("/v1/completions", **asked)
        parts = [event["choices"][0]["logprobs"] for event in events if event["choices"][0]["logprobs"]]
        for name in whole:
            assert [one for part in parts for one in part[name]] == whole[name]


def model_log_probabilities(server, ids):
    """Of every id behind [gMASK] sop and those before it, straight from the model."""
    import torch

    from glm.inputs import prefix_causal_blocked

    tokenizer, model = server.server.served.tokenizer, server.server.engine.model
    row = [tokenizer.command("[gMASK]"), tokenizer.command("sop"), *ids]
    length = torch.tensor([len(row)])
    positions = torch.arange(len(row))[None]
    if model.config.position_encoding_2d:
        positions = torch.stack((positions, torch.zeros_like(positions)), 1)
    with torch.inference_mode():
        logits = model.logits(torch.tensor([row]), positions, prefix_causal_blocked(length * 0, length, len(row)))
    found = logits[0].log_softmax(-1)
    return [found[place, token].item() for place, token in enumerate(ids, 1)]


class TestFill:
    def test_places_of_blanks(self, server):
        answer = server.post("/v1/fill", text="The [MASK] lies at the [MASK].", seed=3, max_tokens=6)
        result, = answer["results"]
        for blank in result["blanks"]:
            assert result["text"][blank["start"]:blank["end"]] == blank["text"] == blank["text"].strip(" ")
        assert len(result["blanks"]) == 2 and result["alternatives"] == [] and answer["object"] == "fill"

    def test_what_the_library_gives(self, server):
        from generation import SamplingParams, fill_blanks

        asked = ["The [MASK] lies at the [MASK].", "他走到门口，[MASK]。", "My dear"]
        results = fill_blanks(server.server.engine.model, server.server.served.tokenizer, asked,
                              SamplingParams(seed=7, max_gen_length=8))
        answer = server.post("/v1/fill", text=asked, seed=7, max_tokens=8)
        assert [one["text"] for one in answer["results"]] == [result.text for result in results]
        assert [one["finish_reason"] for one in answer["results"]] == [result.finish_reason for result in results]

    def test_beams(self, server):
        result, = server.post("/v1/fill", text="He took out [MASK].", num_beams=3, min_tokens=2,
                              max_tokens=6)["results"]
        assert len(result["alternatives"]) == 3 and result["alternatives"][0]["text"] == result["text"]
        scores = [one["score"] for one in result["alternatives"]]
        assert scores == sorted(scores, reverse=True)

    def test_streamed(self, server):
        asked = {"text": ["The [MASK] lies at the [MASK].", "它在 [MASK]。"], "seed": 3, "max_tokens": 8}
        whole = server.post("/v1/fill", **asked)["results"]
        *chunks, last = server.stream("/v1/fill", **asked)
        assert last["results"] == whole
        for index, result in enumerate(whole):
            for number, blank in enumerate(result["blanks"]):
                mine = [chunk["delta"] for chunk in chunks if (chunk["index"], chunk["blank"]) == (index, number)]
                assert "".join(mine).strip(" ") == blank["text"]

    def test_one_text_that_does_not_fit_spoils_no_other(self, server):
        long = "word " * 600
        answer = server.post("/v1/fill", text=["He took out [MASK].", long], seed=1, max_tokens=3)
        assert [one["finish_reason"] == "error" for one in answer["results"]] == [False, True]
        assert "text too long" in answer["results"][1]["error"]
        assert server.error("/v1/fill", {"text": long})[1]["code"] == "context_length_exceeded"


class TestTokens:
    @pytest.mark.parametrize("text", ["The house", "他走到门口看见", "a\n\tb   c", ""])
    def test_there_and_back(self, server, text):
        ids = server.post("/tokenize", prompt=text)["tokens"]
        assert server.post("/v1/detokenize", tokens=ids) == {"prompt": text}

    def test_commands(self, server):
        info = server.ask("GET", "/tokenizer_info")[2]
        assert (info["bos_token"], info["eos_token"], info["chat_template"]) == ("<sop>", "</s>", None)
        tokenizer = server.server.served.tokenizer
        assert server.post("/v1/tokenize", prompt="<sop>")["tokens"] == [tokenizer.command("sop")]
        assert tokenizer.command("sop") not in server.post("/tokenize", prompt="a <sop>")["tokens"]


def test_numbers_are_counted(server):
    before = server.metric("glm_requests_total", route="completions", outcome="ok")
    tokens = server.metric("glm_generated_tokens_total")
    answer = server.post("/v1/completions", prompt="The", max_tokens=3, seed=1)
    assert server.metric("glm_requests_total", route="completions", outcome="ok") == before + 1
    assert server.metric("glm_generated_tokens_total") == tokens + answer["usage"]["completion_tokens"]
    assert math.isclose(server.metric("glm_requests_running"), 0)
