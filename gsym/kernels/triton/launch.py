"""Running Triton kernels, and the types and widths that they compute in."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = triton.knobs.runtime.interpret

# The interpreter multiplies the bits of bfloat16, so there products take float32.
BFLOAT16 = tl.constexpr(tl.float32 if INTERPRETED else tl.bfloat16)


def launch(kernel: Any, programs: int, x: Tensor, *args: object, **options: object) -> None:
    """Run a kernel on the device of ``x``; no program, no launch."""
    if programs:
        with torch.cuda.device_of(x):
            kernel[(programs,)](*args, **options)


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """What products and sums of a type are added up in."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def operand(dtype: torch.dtype) -> tl.dtype:
    """What the tensor cores are given."""
    half = {torch.bfloat16: BFLOAT16.value, torch.float16: tl.float16}
    return half.get(dtype, accumulator(dtype))


def input_precision(dtype: torch.dtype) -> str:
    """How the tensor cores read float32: as three TF32 parts, or one where torch allows it."""
    if dtype != torch.float32:
        return "ieee"
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def width(channels: int, least: int = 1, most: int = 128) -> int:
    """Channels that one program takes: a power of two."""
    return max(least, min(most, triton.next_power_of_2(channels)))
