"""Manifests and conversions' journals, damaged or made up."""

import hashlib
import json
import shutil

import pytest
from hypothesis import strategies as st

from commands.convert import run_verify
from tests.fuzzing import changed_json, files_below, fuzz, hostile_json, mutated, only_user_errors
from tests.tiny_checkpoints import tiny_checkpoint
from tools.converting import manifest as journals
from tools.converting.convert import convert
from tools.converting.manifest import read_manifest
from tools.converting.plan import Wish


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A converted one, with its manifest."""
    folder = tmp_path_factory.mktemp("manifest")
    convert(tiny_checkpoint(folder / "source", 1), folder / "tiny", Wish(1), {}, None)
    return folder / "tiny"


def sealed(content) -> str:
    """A manifest whose checksum is right, whatever it says."""
    content = content | {"sha256": ""}
    content["sha256"] = hashlib.sha256(f"{json.dumps(content, indent=1)}\n".encode()).hexdigest()
    return f"{json.dumps(content, indent=1)}\n"


@fuzz(80, data=st.data())
def test_a_manifest_that_was_changed(checkpoint, data):
    path = checkpoint / "manifest.json"
    good = path.read_text(encoding="utf-8")
    kind = data.draw(st.sampled_from(["values", "values", "bytes", "text"]))
    if kind == "values":  # with a checksum that is right
        content = changed_json(json.loads(good), data.draw)
        path.write_text(sealed(content) if isinstance(content, dict) else "[]", encoding="utf-8")
    elif kind == "text":
        path.write_text(data.draw(hostile_json), encoding="utf-8", errors="surrogatepass")
    else:
        path.write_bytes(data.draw(mutated(good.encode())))
    before = files_below(checkpoint.parent)
    with only_user_errors("manifests"):
        manifest = read_manifest(path)
        assert not any(name.startswith("/") or ".." in name.split("/") for name in manifest.files)
    with only_user_errors("manifests"):
        run_verify([checkpoint])
        run_verify([checkpoint], path)
    assert files_below(checkpoint.parent) == before
    path.write_text(good, encoding="utf-8")
    assert run_verify([checkpoint]) == 0


@fuzz(40, data=st.data())
def test_a_damaged_journal_of_a_conversion(checkpoint, tmp_path_factory, data):
    output = tmp_path_factory.mktemp("conversion") / "out"
    folder = output / journals.CONVERTING
    folder.mkdir(parents=True)
    good = {
        "conversion": read_manifest(checkpoint / "manifest.json").made_by,
        "finished": {"mp_rank_00_model_states.pt": {"bytes": 1, "hash": "sha256:0"}},
    }
    kind = data.draw(st.sampled_from(["values", "bytes", "text"]))
    text = data.draw({"values": st.just(None), "bytes": mutated(json.dumps(good).encode()), "text": hostile_json}[kind])
    if kind == "values":
        text = json.dumps(changed_json(good, data.draw))
    (folder / "journal.json").write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    with only_user_errors("journals of conversions"):
        convert(checkpoint.parent / "source", output, Wish(1), {}, None)
    shutil.rmtree(output.parent)
