"""Any bytes where a task file, a row of data, a hostfile or a model's shapes are expected."""

import json
import os

import pytest
import yaml
from hypothesis import strategies as st

from evaluation.config import CONFIGS, as_record
from evaluation.discovery import data_files, find_task_files, load_tasks
from evaluation.names import import_dotted
from evaluation.output import write_json
from evaluation.plan import look
from evaluation.results import rounded
from evaluation.task_file import load_task
from evaluation.tasks import task_class
from glm.config import FIELDS, PRESETS, ModelConfig, read_config_file
from runtime.hosts import check_layout, read_hostfile
from runtime.strict_yaml import parse_mapping
from tests.fuzzing import (
    CANARY,
    changed_json,
    disguises,
    files_below,
    fuzz,
    hostile_json,
    json_values,
    mutated,
    names,
    numbers,
    only_user_errors,
    texts,
)

RUN = f"import os; os.environ['{CANARY}'] = '1'"
CODE = [
    "!!python/object/apply:os.putenv [x, y]", f'!!python/object/apply:exec ["{RUN}"]',
    f'!!python/object/new:exec {{args: ["{RUN}"]}}', "!!python/name:os.system", "!!python/module:antigravity",
    "!!python/object:os.system {}", "!!python/tuple [1]", "!!binary aGk=", "!!set {a, b}", "!!omap [a: 1]",
    "!!timestamp 2001-99-99", "2001-12-14t21:59:43.10-05:00", "!!float x", "!!int ''", "!!bool 7", "!!null x",
    "!!str [a]", "!!map [a]", "!local x", "!<tag:yaml.org,2002:str> 1",
    "!<%0A%1b[31m> x",
    "*a", "&a [*a]", "&a x", "<<: *a", "{<<: [1]}", "{<<: x}",
    "[" * 400,
    "{a: " * 400, "1" * 5000, "0x" + "f" * 5000, "1:" * 2000 + "1", ".inf", "-.nan", "1e999", "0o17", "1_000",
    "? [a]", "? {a: b}", "'\\x'", '"\\xff\\ud800"', "|\n  text", ">9\n x", "%YAML 9.9", "---", "...", "- a", "\t",
    "@", "`", "\x07", "\ufffe", "é", "\x85", "\u2028",
]
KEYS = sorted({name for kind in CONFIGS.values() for name in kind.__dataclass_fields__} | {"file-pattern", "Name", "x"})
scalars = st.one_of(
    st.sampled_from(CODE),
    texts,
    names,
    numbers.map(str),
    st.sampled_from(
        [
            "mul", "gen", "lm", "other", "true", "[]", "{}", "null", "[Accuracy]", "[EM, F1]", "'**/*.jsonl'",
            "{a: '*'}", "./data", "data", "../data", "~", "**/../*",
            "[a-",
            "[z-a]", "{b: ../*}", "evaluation.tasks.GenerationTask", "os.system", "x.y",
        ]
    ),
)
task_texts = st.lists(st.tuples(st.one_of(st.sampled_from(KEYS), scalars), scalars), max_size=8).map(
    lambda pairs: "".join(f"{key}: {value}\n" for key, value in pairs)
)
GOOD = {
    "mul": "name: a\ntype: mul\npath: data\nmetrics: [Accuracy]\nfile-pattern: {all: '*.jsonl'}\n",
    "gen": "name: a\ntype: gen\npath: ./data\nsampling_strategy: BeamSearchStrategy\nmax_gen_length: 5\n",
    "lm": "name: a\ntype: lm\npath: data\nfile_pattern: '*.txt'\ngeneration_length: 100\n",
    "other": "name: a\ntype: other\npath: data\nmodule: evaluation.tasks.GenerationTask\noptions: {a: [1, {b: 2.5}]}\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tasks")


def use(config, folder) -> None:
    """What happens with a task before there is a model, and its settings in results.json after it."""
    find = data_files(config)
    assert all(
        path.resolve().is_relative_to(folder.resolve()) for paths in find.values() for path in paths
    ) or not config.path.startswith(str(folder))
    task_class(config)
    look([config], allow_missing=True)
    write_json(folder / "config.json", rounded(as_record(config)))


def with_values(good, values):
    """A good task file in which some keys have other values."""
    lines = dict(line.split(": ", 1) for line in good.splitlines()) | values
    return "".join(f"{key}: {value}\n" for key, value in lines.items())


@fuzz(
    150,
    text=st.one_of(
        task_texts,
        st.builds(
            with_values,
            st.sampled_from(sorted(GOOD.values())),
            st.dictionaries(
                st.sampled_from([*KEYS, "path", "path", "file_pattern", "options"]), scalars, min_size=1, max_size=2
            ),
        ),
    ),
)
def test_any_task_file_is_read_or_refused(folder, text):
    path = folder / "task.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with only_user_errors("task files"):
        use(load_task(path, folder), folder)


@pytest.mark.parametrize("kind", GOOD)
def test_damaged_task_files(folder, kind):
    path = folder / "damaged.yaml"

    @fuzz(40, data=mutated(GOOD[kind].encode()))
    def run(data):
        path.write_bytes(data)
        with only_user_errors("task files, damaged"):
            use(load_task(path, folder), folder)

    run()
    path.write_text(GOOD[kind], encoding="utf-8")
    use(load_task(path, folder), folder)


@fuzz(
    60,
    value=st.dictionaries(st.sampled_from(KEYS), json_values, max_size=8),
    flow=st.booleans(),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1"]),
)
def test_any_values_under_any_keys(folder, value, flow, encoding):
    path = folder / "values.yaml"
    path.write_bytes(yaml.dump(value, default_flow_style=flow, allow_unicode=True).encode(encoding, "replace"))
    with only_user_errors("task files"):
        use(load_task(path, folder), folder)


def bomb(levels, form):
    first = "a0: &a0 [x, x, x, x, x, x, x, x, x]" if form == "list" else "a0: &a0 {k0: 1, k1: 1, k2: 1}"
    lines = [first]
    for level in range(1, levels):
        several = ", ".join([f"*a{level - 1}"] * 9)
        lines.append(
            f"a{level}: &a{level} [{several}]" if form == "list" else f"a{level}: &a{level} {{<<: [{several}]}}"
        )
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("form", ["list", "merge"])
@pytest.mark.parametrize("levels", [2, 5, 9, 40])
def test_few_bytes_that_stand_for_many(folder, form, levels):
    path = folder / "bomb.yaml"
    path.write_text(
        f"{GOOD['other'].partition('options')[0]}options:\n  " + bomb(levels, form).replace("\n", "\n  "),
        encoding="utf-8",
    )
    with only_user_errors("task files, bombs"):
        use(load_task(path, folder), folder)


hosts = st.one_of(
    st.sampled_from(
        [
            "worker-1 slots=8", "worker-1 slots=" + "9" * 5000, "a slots=0", "-oProxyCommand=x slots=1",
            "a@b slots=２", "x  slots=1 # c", "#", "", "a slots=-1", "a:22 slots=1", "é slots=1",
        ]
    ),
    texts,
)


@fuzz(100, lines=st.lists(st.one_of(hosts, hosts, st.binary(max_size=20)), max_size=6), degree=st.integers(1, 9))
def test_any_hostfile_is_read_or_refused(folder, lines, degree):
    path = folder / "hostfile"
    path.write_bytes(
        b"\n".join(line if isinstance(line, bytes) else line.encode("utf-8", "surrogatepass") for line in lines)
    )
    with only_user_errors("hostfiles"):
        found = read_hostfile(path)
        check_layout(found, degree, path)
        assert all(host.slots > 0 and not host.name.startswith("-") for host in found)


@fuzz(150, data=st.data(), damage=st.sampled_from(["bytes", "values", "text"]))
def test_any_model_config_is_read_or_refused(folder, data, damage):
    path = folder / "model_config.json"
    good = PRESETS["glm-small"]
    if damage == "text":
        path.write_text(data.draw(hostile_json), encoding="utf-8")
    elif damage == "bytes":
        path.write_bytes(data.draw(mutated(json.dumps(good).encode())))
    else:
        more = data.draw(st.dictionaries(st.one_of(st.sampled_from(FIELDS), texts), json_values, max_size=2))
        path.write_text(json.dumps(changed_json(good, data.draw) | more), encoding="utf-8")
    with only_user_errors("model_config.json"):
        config = ModelConfig.from_values(read_config_file(path), str(path))
        assert 0 < config.head_size < 2**31 and config.table.layer and config.num_image_tokens >= 0
        assert 0 < config.layernorm_epsilon < 1
        config.save(folder / "saved.json")
        assert ModelConfig.from_file(folder / "saved.json") == config


MODULES = [
    "evaluation.tasks.Task", "os.system", "os.path.join", "nosuch.Thing", "mine.Task", "mine.none", "broken.X",
    "ends.X", "..x", "a.", ".", "mine..Task", "folder.mine.X", "__main__.x", "x" * 5000 + ".y", "a." * 3000 + "b",
    "../mine.Task", "/etc/passwd.x", "mine/../mine.Task", "ａ.b", "evaluation.tasks.", "sys.path", "builtins.exec",
]


@fuzz(60, name=st.one_of(st.sampled_from(MODULES), st.text("abАß._0-/\\ \x00\n", max_size=40)))
def test_any_module_string_names_a_class_or_nothing(folder, name):
    (folder / "mine.py").write_text("class Task: pass\n", encoding="utf-8")
    (folder / "broken.py").write_text("raise RuntimeError('two\\nlines')\n", encoding="utf-8")
    (folder / "ends.py").write_text("raise SystemExit(0)\n", encoding="utf-8")
    with only_user_errors("module strings"):
        import_dotted(name, folder, "task.yaml: module")


@fuzz(
    60,
    paths=st.lists(
        st.one_of(names, texts, st.sampled_from(["*", "**", "[", "**/*", "[!]", "?", "*.yaml", "{a,b}"])),
        min_size=1,
        max_size=3,
    ),
)
def test_any_path_names_task_files_or_nothing(folder, paths, monkeypatch):
    monkeypatch.chdir(folder)
    paths = [os.fsdecode(path.encode("utf-8", "surrogatepass")) for path in paths if "\0" not in path]
    before = files_below(folder)
    with only_user_errors("paths of tasks"):
        if any(path.startswith(("/", "~")) or ".." in path for path in paths):
            paths = [path for path in paths if path in ("/etc/passwd", "../x")]
        find_task_files(paths)
        load_tasks(paths, folder)
    assert files_below(folder) == before


@fuzz(100, start=disguises, text=st.one_of(task_texts, texts))
def test_files_that_begin_as_others_do(folder, start, text):
    data = start + text.encode("utf-8", "surrogatepass")
    for name, read in (("other.yaml", lambda path: load_task(path, folder)), ("hostfile", read_hostfile),
                       ("model_config.json", read_config_file)):
        (folder / name).write_bytes(data)
        with only_user_errors("files in the place of others"):
            read(folder / name)


words = st.text("abc ÀΩ中#:-*&!|>'\"%@`{}[],?~\n\t", max_size=20)
plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), words),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(words, inner, max_size=4)),
    max_leaves=12,
)


@fuzz(150, value=st.dictionaries(words, plain, min_size=1, max_size=4), flow=st.sampled_from([True, False, None]))
def test_what_is_written_as_yaml_is_read_as_it_was(value, flow):
    """Numbers, texts and structures of any kind, as yaml writes them and in each of its styles."""
    text = yaml.safe_dump(value, default_flow_style=flow, allow_unicode=True)
    with only_user_errors("YAML") as refused:
        assert parse_mapping(text, "a.yaml") == value
    assert not refused


@fuzz(100, text=texts)
def test_any_text_is_a_mapping_or_no_yaml(text):
    with only_user_errors("YAML"):
        assert all(isinstance(key, str) for key in parse_mapping(text, "a.yaml"))
