"""A model whose layers are streamed beside the same model in memory, and beside what the disk gives."""

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

DISK_BYTES = 1 << 30  # read to measure the disk
CONTEXT = 16  # tokens before those that are decoded
SCORED = 16  # tokens of each row of a scored batch
SKIPPED = 2  # steps that do not count


class Task(NamedTuple):
    """What is measured. limit: GB, None: everything stays in memory. score: rows and tokens of a batch to score."""

    load: Path
    dtype: str
    limit: float | None
    steps: int
    score: tuple[int, int]
    repeats: int  # of the scoring; the best counts
    threads: int | None


class Measured(NamedTuple):
    """Seconds, bytes, bytes per second."""

    streamed_layers: int
    layers: int
    weight_bytes: int  # in memory
    streamed_bytes: int  # needed again for every pass
    disk_rate: float
    step_seconds: float  # a decoded token, median
    score_seconds: float
    answers: str  # digest of everything that was answered


def measure(task: Task) -> Measured:
    import torch

    from evaluation.requests import ScoreRequest
    from evaluation.scorer import Scorer
    from generation.fill import generate
    from generation.params import SamplingParams
    from glm.checkpoint import find_shards
    from glm.loading import load_model, read_config
    from glm.options import ModelOptions
    from runtime import parallel

    if task.threads:
        torch.set_num_threads(task.threads)
    parallel.start()
    config = read_config(task.load)
    model = load_model(ModelOptions(task.load, offload_memory_limit=task.limit, device=torch.device("cpu"),
                                    dtype=getattr(torch, task.dtype)), config)
    streamed = () if model.stream is None else model.stream.order
    generator = torch.Generator().manual_seed(0)
    digest, clock = hashlib.sha256(), []
    rates = [disk_rate(find_shards(task.load)[0])]

    end, count = config.vocab_size - 1, task.steps + SKIPPED
    ids = torch.randint(end, (CONTEXT + 1,), generator=generator).tolist()
    answer = generate(model, [ids], SamplingParams(top_k=1, min_gen_length=count), end_tokens=[end], limits=[count],
                      on_step=lambda _: clock.append(time.perf_counter()))
    digest.update(str(answer).encode())

    rows, length = task.score
    rates.append(disk_rate(find_shards(task.load)[0]))
    seconds = []
    if rows:
        texts = torch.randint(end, (rows, length), generator=generator).tolist()
        requests = [ScoreRequest(tuple(text[:-SCORED]), (tuple(text[-SCORED:]),), end, length - SCORED, 1)
                    for text in texts]
        for _ in range(task.repeats):
            begin = time.perf_counter()
            digest.update(str(Scorer(model).choice_log_probs(requests)).encode())
            seconds.append(time.perf_counter() - begin)
    absent = sum(parameter.nbytes for parameter in model.parameters() if parameter.is_meta)
    return Measured(len(streamed), config.num_layers, model.weight_bytes(), absent, max(rates),
                    median(after - before for before, after in pairwise(clock[SKIPPED - 1:])),
                    min(seconds, default=0.0), digest.hexdigest()[:16])


def row_of(limit: float | None, found: Measured, resident: Measured, cap: int | None, peak: int | None) -> dict:
    """What a run tells beside the resident model. floor: the slower of reading what is streamed and of the resident
    model's own work; share: the floor over the time taken."""
    def share(seconds: float, least: float) -> float | None:
        floor = max(found.streamed_bytes / found.disk_rate, least)
        return round(floor / seconds, 3) if seconds else None

    return {
        "limit_gb": limit, "cap_gb": cap and round(cap / 1e9, 3), "peak_gb": peak and round(peak / 1e9, 3),
        "weights_gb": round(found.weight_bytes / 1e9, 3), "streamed_layers": f"{found.streamed_layers}/{found.layers}",
        "streamed_gb": round(found.streamed_bytes / 1e9, 3), "disk_gb_s": round(found.disk_rate / 1e9, 2),
        "token_ms": round(1e3 * found.step_seconds, 1),
        "token_floor_ms": round(1e3 * max(found.streamed_bytes / found.disk_rate, resident.step_seconds), 1),
        "token_share": share(found.step_seconds, resident.step_seconds),
        "score_s": round(found.score_seconds, 2), "score_share": share(found.score_seconds, resident.score_seconds),
        "same_answers": found.answers == resident.answers,
    }


def table(rows: list[dict]):
    from rich.table import Table

    made = Table(title="Streamed layers beside the model in memory; share: of what disk and resident model allow",
                 title_justify="left", title_style="bold")
    for name in rows[0]:
        made.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        made.add_row(*("-" if value is None else str(value) for value in row.values()))
    return made


def disk_rate(path: Path, piece: int = 4 << 20, readers: int = 4) -> float:
    """Bytes per second of reading a file directly, with nothing else to do."""
    from glm.layer_file import aligned_bytes

    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    total = min(DISK_BYTES, os.fstat(file).st_size // piece * piece)
    rooms = [memoryview(aligned_bytes(piece).numpy()) for _ in range(readers)]

    def read(reader: int) -> None:
        for offset in range(reader * piece, total, readers * piece):
            os.preadv(file, [rooms[reader]], offset)

    try:
        with ThreadPoolExecutor(readers) as pool:
            begin = time.perf_counter()
            list(pool.map(read, range(readers)))
            return total / (time.perf_counter() - begin)
    finally:
        os.close(file)
