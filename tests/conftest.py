"""Settings of the whole test run. Fixtures live in the test files that use them."""

import pytest
import torch


def pytest_configure():
    # Tiny models: more threads cost more than they bring, and other programs want the machine too.
    torch.set_num_threads(min(2, torch.get_num_threads()))


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
