"""Memory in large pages, and the tensors that are cut from it."""

import gc
import weakref

import torch

from runtime import pages, resources
from runtime.pages import ALIGNMENT, LargePages


def test_tensors_of_one_area_do_not_touch_each_other():
    room, generator = LargePages(), torch.Generator().manual_seed(0)
    shapes = [(3, 5), (7,), (0, 4), (), (128, 33), (1,)]
    found = [room.empty(shape, dtype) for shape in shapes for dtype in (torch.float32, torch.bfloat16, torch.int8)]
    values = [torch.randint(-100, 100, part.shape, generator=generator) for part in found]
    for part, value in zip(found, values, strict=True):
        part.copy_(value)
    for part, value in zip(found, values, strict=True):
        assert torch.equal(part, value.to(part.dtype)) and part.is_contiguous()
        assert part.data_ptr() % ALIGNMENT == 0 and part.untyped_storage().nbytes() == part.nbytes


def test_the_first_tensor_begins_with_a_page_and_the_next_ones_follow_it():
    room = LargePages()
    first, second = room.empty((1000,), torch.float32), room.empty((10,), torch.float32)
    assert first.data_ptr() % resources.HUGE_PAGE == 0 and second.data_ptr() == first.data_ptr() + 4032


def test_what_does_not_fit_gets_an_area_of_its_own(monkeypatch):
    monkeypatch.setattr(pages, "AREA", 4096)
    room = LargePages()
    parts = [room.empty((size,), torch.uint8).fill_(number)
             for number, size in enumerate((100, 4 << 20, resources.HUGE_PAGE + 5000, 7))]
    assert [part.unique().tolist() for part in parts] == [[0], [1], [2], [3]]


def test_an_area_goes_with_its_last_tensor(monkeypatch):
    areas = []

    class Area(pages.mmap.mmap):
        pass

    def made(*arguments, **options):
        area = Area(*arguments, **options)
        areas.append(weakref.ref(area))
        return area

    monkeypatch.setattr(pages.mmap, "mmap", made)
    room = LargePages()
    first, second = room.empty((5,), torch.float32), room.empty((6,), torch.float32)
    del room, first
    gc.collect()
    assert areas[0]() is not None and second.fill_(2).sum() == 12
    del second
    gc.collect()
    assert areas[0]() is None


def test_what_the_system_says_is_a_number_of_bytes_or_nothing():
    found = pages.large_bytes()
    assert found is None or (found >= 0 and found % 1024 == 0)
