"""What this machine's processor multiplies: which precision is fast on it, and a note on one that is not."""

from __future__ import annotations

import os
from collections.abc import Set

from runtime.resources import processor

PRODUCTS = {"bf16": {"avx512_bf16", "amx_bf16"}, "fp16": {"avx512_fp16", "amx_fp16"}}  # any of these will do


def flags() -> set[str]:
    """Instruction sets of this CPU as Linux names them, but for what GLM_CPU_ISA leaves out; nothing elsewhere."""
    found = set(processor("flags").split())
    if os.environ.get("GLM_CPU_ISA", "native") != "native":
        found -= set().union(*PRODUCTS.values())
    return found


def note_on(precision: str | None, device: str, known: Set[str]) -> str | None:
    """One line where a precision that was asked for is slow here. known: of `flags`; empty where nobody knows."""
    if device != "cpu" or precision not in PRODUCTS or not known or known & PRODUCTS[precision]:
        return None
    lacking = " or ".join(sorted(PRODUCTS[precision]))
    return (f"--{precision}: this processor has no products of 16-bit numbers ({lacking}), so it reads texts several "
            "times more slowly than with --fp32; for less memory there is --quantization-bit-width 8")


def default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def default_precision(device: str) -> str:
    """bf16 where the device computes in it, else fp16 on a GPU and fp32 on a CPU."""
    if device.startswith("cuda"):
        import torch

        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if flags() & PRODUCTS["bf16"] else "fp32"
