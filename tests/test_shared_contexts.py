"""Beams read the context that they share from one row of the cache: their own copies of it are not looked at."""

import pytest
import torch

import kernels
from generation import BeamParams, SamplingParams
from generation.batch import Batch
from generation.groups import Row
from generation.sampling import rules
from glm.cache import KVCache
from kernels import cuda, reference
from kernels.reference import Lengths, Shared
from tests.cuda_emulator import Emulator, shared_folder
from tests.kernel_cases import random
from tests.test_batch import assert_same, finish
from tests.test_recorded_steps import FAMILIES, model_of

pytestmark = pytest.mark.usefixtures("one_thread")
CONTEXT, CAPACITY, D = 21, 40, 16


@pytest.fixture(scope="module")
def on_cpu():
    if kernels.compiled() is None:
        pytest.skip("there is no C++ compiler")
    return kernels.compiled()


def case(dtype, groups, b=4, n=4):
    """qkv, keys, values, cosine, sine and lengths of rows that share a context, the last one but for its own, of which
    row 1 holds it; and the cache in which the others' copies are no numbers."""
    qkv, cache = random(b, 1, (n + 2 * groups) * D, dtype=dtype), random(2, b, groups, CAPACITY, D, dtype=dtype, seed=1)
    angle = random(b, 1, D // 2, dtype=torch.float32, seed=2).repeat(1, 1, 2)
    cache[:, :3, :, :CONTEXT] = cache[:, 1:2, :, :CONTEXT]
    poisoned = cache.clone()
    poisoned[:, [0, 2], :, :CONTEXT] = torch.nan
    each = torch.tensor([CONTEXT, CONTEXT + 9, CONTEXT + 3, 7])
    shared = Shared(torch.tensor([1, 1, 1, 0]), torch.tensor([CONTEXT, CONTEXT, CONTEXT, 0]))
    return qkv, cache, poisoned, (angle.cos(), angle.sin()), Lengths(each, int(each.max())), shared


def attended(ops, groups, qkv, cache, angles, start):
    if groups < 4:
        return ops.attend_groups(qkv, groups, D, *angles, *cache, start)
    return ops.attend(qkv, *angles, *cache, start)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("groups", [4, 2, 1])
def test_the_cpu_reads_the_context_of_one_row(on_cpu, dtype, groups):
    qkv, cache, poisoned, angles, start, shared = case(dtype, groups)
    wanted = attended(on_cpu, groups, qkv, cache, angles, start)
    assert torch.equal(attended(on_cpu, groups, qkv, poisoned, angles, start._replace(shared=shared)), wanted)
    exact = attended(reference, groups, qkv.float(), cache.float(), angles, start._replace(shared=shared))
    assert torch.allclose(wanted.float(), exact, atol=0.05 if dtype.itemsize == 2 else 1e-5)


@pytest.mark.parametrize("groups", [4, 1])
def test_so_does_a_gpu(tmp_path_factory, groups):
    emulator = Emulator(shared_folder(tmp_path_factory))
    ops = cuda.Operators(lambda _: emulator)
    qkv, cache, poisoned, angles, start, shared = case(torch.float16, groups)
    wanted = attended(ops, groups, qkv, cache, angles, start)
    assert torch.equal(attended(ops, groups, qkv, poisoned, angles, start._replace(shared=shared)), wanted)
    assert len(emulator.launched) == 2


ROWS = [Row([7, 8, 9, 10, 11], BeamParams(num_beams=3, no_repeat_ngram_size=2), 9, rules((1, 2))),
        Row([6, 6], SamplingParams(top_k=1), 4, rules((1, 2))),
        Row([5, 30, 31], BeamParams(num_beams=2), 5, rules((1, 2)), shared_position=1),
        Row([12, 13, 14, 15], BeamParams(num_beams=3, no_repeat_ngram_size=2), 12, rules((1, 2)))]


@pytest.mark.parametrize("family", ["glm-130b", "chatglm2"])
@pytest.mark.parametrize("is_walked", [False, True])
def test_beams_never_look_at_their_copies(on_cpu, monkeypatch, family, is_walked):
    """While rows beside them leave, and they move into the places of those."""
    copy_row, model = KVCache.copy_row, model_of(FAMILIES[family])
    if is_walked:
        monkeypatch.setattr(kernels, "stack", lambda *arguments: None)

    def answers():
        batch = Batch(model)
        batch.add(ROWS[:3])
        batch.step()
        batch.add(ROWS[3:])
        return finish(batch)

    def poisonous(cache, source, targets):
        copy_row(cache, source, targets)
        copies = [row for row in range(targets.start, targets.stop) if row != source]
        filled = cache.buffer[0, 0, source].abs().sum(dim=(0, 2)).ne(0).sum()
        first = targets.start
        cache.buffer[:, :, [row for row in copies if row != first], :, :filled] = torch.nan

    wanted = answers()
    monkeypatch.setattr(KVCache, "copy_row", poisonous)
    for found, expected in zip(answers().values(), wanted.values(), strict=True):
        assert_same(found, expected)
