"""Settings of the whole test run. Fixtures live in the test files that use them; here are those of several files."""

import signal

import hypothesis
import pytest
import torch

import kernels
from glm.tokenizers.icetk import IcetkTokenizer
from tests.golden_data import TOKENIZER

# The same inputs every time, and no verdict by the clock; fuzzing.py says how to try others.
hypothesis.settings.register_profile(
    "tests", derandomize=True, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck))

# The modules that take longest. They begin first: one that began last would run alone, with the other cores idle.
LONG = ("kernels_packed", "multiple_nodes", "faults_ranks", "gpu_check", "kernels", "faults_secrets", "quantized_runs",
        "faults_ended", "convert_tp_safety", "evaluation_run", "doctor", "pretrain", "faults_killed", "benchmark",
        "fuzz_records", "faults_disk", "tuning_loop", "tuning_zero", "imports", "stream_runs")


def pytest_configure(config):
    hypothesis.settings.load_profile("tests")
    # A shell starts background jobs with Ctrl-C ignored; programs that are tested would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Tiny models: more threads cost more than they bring, and other programs want the machine too.
    torch.set_num_threads(min(2, torch.get_num_threads()))
    if not hasattr(config, "workerinput"):
        kernels.compiled()  # once, before the processes that share them begin


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")


def pytest_collection_modifyitems(config, items):
    places = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="needs --slow"))


@pytest.fixture(scope="session")
def tokenizer():
    return IcetkTokenizer(TOKENIZER / "ice_text.model")


@pytest.fixture(scope="module")
def one_thread():
    """Where tensors are tiny, two threads that wait for each other cost milliseconds a call."""
    yield from _threads(1)


@pytest.fixture(scope="module")
def two_threads():
    """Where work is divided among threads, and that is what is tested."""
    yield from _threads(2)


def _threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)
