"""Other engines at the same shape with random weights, each where its package is installed."""

import importlib
from collections.abc import Iterator

from tools.benchmarking.machine import Bandwidth
from tools.benchmarking.result import Result, Shape

# engine: (modules it needs, how to get them, the file that measures it)
ENGINES = {
    "transformers": (["transformers"], "pip install transformers", "tools.benchmarking.peer_transformers"),
    "llama.cpp": (["llama_cpp", "gguf"], "pip install llama-cpp-python gguf", "tools.benchmarking.peer_llama_cpp"),
    "openvino": (["openvino"], "pip install openvino", "tools.benchmarking.peer_openvino"),
}


class Missing(Exception):
    """An engine cannot be measured here; the message says why and what would help."""


def measure(engine: str, shape: Shape, arguments, bandwidth: Bandwidth) -> Iterator[Result]:
    """Prefill and decoding of one engine. `arguments`: device, dtype, prefill, contexts, steps, repeats."""
    modules, install, file = ENGINES[engine]
    missing = []
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError:
            missing.append(module)
    if missing:
        raise Missing(f"the package {' and '.join(missing)} is not installed; {install}")
    if arguments.device != "cpu" and engine != "transformers":
        raise Missing("measured on CPUs only")
    return importlib.import_module(file).measure(shape, arguments, bandwidth)
