"""Does the product answer on a GPU as on the processor? The embedded model in float32, through loading, generation and
evaluation as users call them: the same ids, whatever is sampled, searched, batched, padded, streamed or quantised.

With --device cpu it is a rehearsal: the same paths, which can then only agree.
"""

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from runtime.errors import UserError
from runtime.files import REPOSITORY
from tools.checking_gpu.setting import Setting, scheme_name

CHECKPOINT = REPOSITORY / "checkpoints" / "glm-small"
QUICKSTART = REPOSITORY / "tasks" / "quickstart"
PROMPTS = (  # of unlike lengths, so that a batch is padded; each step of an answer is a length of its own
    "Once upon a time, there was a little girl who lived [gMASK]", "It was late. [sMASK] Then we went home.",
    "从前有一个[MASK],他住在[MASK]。", "The capital of [MASK] is a large city on the [MASK].", "The old house [gMASK]")
NEAR = 1e-3  # relative: of figures that evaluation computes
OVER = {"case": "not all cases: the time was over", "right": True}


def lacking() -> str | None:
    """What is left out with this Python, as the case of a row; None: nothing."""
    try:
        import_module("glm.loading")  # with SwissArmyTransformer, sentencepiece, ...
        import_module("generation.fill")
    except (ImportError, UserError) as error:
        return f"not checked: {error}"
    return None


def product(setting: Setting) -> Iterator[dict]:
    """A row for every way to ask; `right` tells whether ids, or samples of evaluation, are the processor's."""
    if reason := lacking():
        yield {"case": reason, "right": True}
        return
    for work in (lambda: answers(setting, None, None), lambda: evaluation(setting),
                 lambda: answers(setting, 8, None), lambda: answers(setting, 4, None), lambda: answers(setting, 4, 32)):
        if not setting.has_time:
            yield OVER
            return
        yield from work()


def answers(setting: Setting, bits: int | None, group_size: int | None) -> Iterator[dict]:
    import glm
    from generation import BeamParams, SamplingParams, fill_blanks

    prompts, length = setting.sizes(PROMPTS, PROMPTS[1:4]), setting.sizes(24, 3)
    modes = {"greedy": SamplingParams(top_k=1, max_gen_length=length),
             "sampled": SamplingParams(top_p=0.8, seed=7, max_gen_length=length),
             "beams": BeamParams(num_beams=4, max_gen_length=length)}
    device, name = str(setting.device), "plain" if bits is None else scheme_name(bits, group_size)

    def load(where: str, **more):
        return glm.load(CHECKPOINT, where, "float32", bits=bits, group_size=group_size, **more)

    def ids(loaded, mode: str, texts=prompts) -> list:
        return [[beam.blank_ids for beam in result.beams] for result in fill_blanks(*loaded, texts, modes[mode])]

    def row(case: str, found: list, wanted: list) -> dict:
        same = sum(one == other for one, other in zip(found, wanted, strict=True))
        return {"case": f"{name}, {case}", "same as on the processor": f"{same} of {len(wanted)}",
                "right": same == len(wanted) and all(found)}

    processor, tested = load("cpu"), load(device)
    truth = {mode: ids(processor, mode) for mode in modes}
    for mode in modes:
        yield row(f"{mode}, a batch", ids(tested, mode), truth[mode])
    yield row("greedy, one by one", [ids(tested, "greedy", [prompt])[0] for prompt in prompts], truth["greedy"])
    if bits is not None:
        return  # layers that are quantised while loading are not streamed
    limit = 0.8 * tested[0].weight_bytes() / 1e9
    del tested
    streamed = load(device, offload_memory_limit=limit)
    found = row("greedy, layers streamed", ids(streamed, "greedy"), truth["greedy"])
    yield found | {"right": found["right"] and streamed[0].stream is not None}


def evaluation(setting: Setting) -> Iterator[dict]:
    """The quickstart tasks, as a command of its own: predictions and ids are the same, and figures to a thousandth."""
    tasks = setting.sizes(QUICKSTART, QUICKSTART / "words_chinese.yaml")
    with tempfile.TemporaryDirectory() as folder:
        outputs = {}
        for place, device in (("processor", "cpu"), ("device", str(setting.device))):
            outputs[place] = Path(folder, place)
            command = [sys.executable, "-m", "evaluation", str(tasks), "--load", str(CHECKPOINT), "--device", device,
                       "--fp32", "--output", str(outputs[place]), *setting.sizes([], ["--limit", "2"])]
            left = max(1.0, setting.deadline - time.monotonic())
            try:
                done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, errors="replace",
                                      timeout=None if math.isinf(left) else left)
            except subprocess.TimeoutExpired:
                yield OVER
                return
            if done.returncode:
                yield {"case": f"evaluation on {device}: {done.stderr.strip()[-300:]}", "right": False}
                return
        yield from compared(outputs["device"], outputs["processor"])


def compared(found: Path, wanted: Path) -> Iterator[dict]:
    """A row for every task of two folders that evaluation has written."""
    for task in sorted((wanted / "samples").iterdir()):
        files = sorted(path.relative_to(wanted) for path in task.rglob("*.jsonl"))
        pairs = [(read(found / file), read(wanted / file)) for file in files]
        yield {"case": f"evaluation of {task.name}", "files": len(files),
               "right": bool(files) and all(is_near(one, other) for one, other in pairs)}


def read(path: Path) -> list:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def is_near(found, wanted) -> bool:
    """Equal in everything but figures with a fraction, which may differ by NEAR."""
    if isinstance(wanted, float):
        return isinstance(found, float) and math.isclose(found, wanted, rel_tol=NEAR, abs_tol=NEAR)
    if isinstance(wanted, dict):
        return isinstance(found, dict) and found.keys() == wanted.keys() and all(
            is_near(found[key], value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(is_near, found, wanted))
    return found == wanted
