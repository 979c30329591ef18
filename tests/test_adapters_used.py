"""Adapters where they are used: the session's and the file's answers, an evaluation and its record, the server."""

import concurrent.futures
import json

import pytest
import torch

import glm
from commands import evaluate, generate
from generation import SamplingParams, fill_blanks
from glm.adapters import lora
from glm.adapters.files import base_of, lora_tensors, write_adapter, write_safetensors
from runtime.errors import UserError

SMALL = "checkpoints/glm-small"
TEXT, GREEDY = "The old house at the river [gMASK]", SamplingParams(top_k=1, max_gen_length=8)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A LoRA and a prefix, of random numbers, of the embedded model."""
    folder, generator = tmp_path_factory.mktemp("adapters"), torch.Generator().manual_seed(1)
    model, _ = glm.load(SMALL, "cpu", "float32")
    made = lora.fresh(model.config, 4, 8, ("query_key_value", "dense_4h_to_h"), 1)
    pairs = {name: [(first, torch.randn(second.shape, generator=generator)) for first, second in both]
             for name, both in made.pairs.items()}
    lora.attach(model, lora.Lora(pairs, made.scale), "here")
    write_adapter(folder / "task.safetensors", lora_tensors(model), {"alpha": 8, "base": base_of(SMALL)})
    c = model.config
    write_safetensors(folder / "prefix.safetensors", {f"prefix.{layer}": 3 * torch.randn(
        2, c.num_attention_heads, 4, c.head_size, generator=generator) for layer in range(c.num_layers)}, {})
    return folder


def filled(adapter=None):
    model, tokenizer = glm.load(SMALL, "cpu", "float32", **({} if adapter is None else {"adapter": adapter}))
    return fill_blanks(model, tokenizer, [TEXT, "It was late. [sMASK] Then we went home."], GREEDY)


def test_an_adapted_model_fills_blanks_another_way_with_the_compiled_step_or_without(files):
    plain, *others = ([result.text for result in filled(each)]
                      for each in (None, files / "task.safetensors", files / "prefix.safetensors"))
    assert all(other != plain for other in others) and others[0] != others[1]


def test_one_model_has_one_adapter(files):
    with pytest.raises(UserError, match="2 adapters were named; a model has one"):
        glm.load(SMALL, "cpu", "float32", adapter=(files / "task.safetensors", files / "prefix.safetensors"))


def test_generation_from_a_file(files, tmp_path):
    (tmp_path / "in.txt").write_text(TEXT + "\n", encoding="utf-8")
    arguments = ["--load", SMALL, "--fp32", "--device", "cpu", "--input-source", str(tmp_path / "in.txt"),
                 "--top-k", "1", "--max-gen-length", "8", "--output-path", str(tmp_path / "out")]
    assert generate.main([*arguments, "--adapter", str(files / "task.safetensors")]) == 0
    line = json.loads((tmp_path / "out" / "results.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert line["text"] == filled(files / "task.safetensors")[0].text


def test_an_evaluation_names_its_adapter_and_keeps_its_answers_apart(files, tmp_path):
    base = ["tasks/quickstart/continue.yaml", "--load", SMALL, "--fp32", "--device", "cpu", "--limit", "2"]
    for name in (None, "task", "prefix"):
        adapter = [] if name is None else ["--adapter", str(files / f"{name}.safetensors")]
        assert evaluate.main([*base, *adapter, "--output", str(tmp_path / str(name))]) == 0
    settings = {name: json.loads((tmp_path / str(name) / "results.json").read_text())["settings"]
                for name in (None, "task", "prefix")}
    assert "adapter" not in settings[None] and settings["task"]["adapter"]["name"] == "task.safetensors"
    assert len({settings[name]["adapter"]["sha256"] for name in ("task", "prefix")}) == 2
    keys = [{json.loads(line)["key"] for line in (tmp_path / str(name) / "journal.jsonl").read_text().splitlines()}
            for name in settings]
    assert not keys[0] & keys[1] and not keys[1] & keys[2]


def test_a_server_has_any_number_chosen_by_the_request(files):
    from tests.serving_helper import running

    flags = ["--adapter", str(files / "task.safetensors"), "--adapter", f"soft={files / 'prefix.safetensors'}"]
    with running(*flags) as server:
        found = server.ask("GET", "/v1/models")[2]["data"]
        assert [(model["id"], model.get("parent")) for model in found] == [
            ("glm-small", None), ("task", "glm-small"), ("soft", "glm-small")]
        assert server.ask("GET", "/v1/models/soft")[2]["parent"] == "glm-small"
        status, error = server.error("/v1/fill", {"text": TEXT, "model": "hard"})
        assert status == 404 and "these are: glm-small, task, soft" in error["message"]

        def ask(name):
            asked = {} if name is None else {"model": name}
            answer = server.post("/v1/fill", text=TEXT, temperature=0, max_tokens=8, **asked)
            assert answer["model"] == (name or "glm-small")
            return answer["results"][0]["text"]

        wanted = {name: filled(path)[0].text for name, path in (
            (None, None), ("glm-small", None), ("task", files / "task.safetensors"),
            ("soft", files / "prefix.safetensors"))}
        with concurrent.futures.ThreadPoolExecutor(8) as pool:  # at once, in three batches
            names = [*wanted] * 2
            assert dict(zip(names, pool.map(ask, names), strict=True)) == wanted
        scored = [server.post("/v1/completions", prompt="The town", echo=True, logprobs=0, max_tokens=0, model=name)
                  ["choices"][0]["logprobs"]["token_logprobs"] for name in ("glm-small", "task", "soft")]
        assert scored[0] != scored[1] != scored[2]


def test_names_of_a_server_s_adapters(files, capsys):
    from commands.serve import adapted, parser

    model, _ = glm.load(SMALL, "cpu", "float32")
    for flags, message in ((["task=a", "task=b"], "'task' is no name of its own"), (["glm-small=a"], "say another"),
                           (["=a"], "'nothing'")):
        paths = [flag.replace("=a", f"={files / 'task.safetensors'}") for flag in flags]
        arguments = parser().parse_args([word for path in paths for word in ("--adapter", path)] + ["--load", SMALL])
        with pytest.raises(UserError, match=message):
            adapted(model, arguments, "glm-small")
