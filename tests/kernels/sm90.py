"""Compiles every Triton kernel for sm_90 without a device and reports what it uses.

Run as a program, without ``TRITON_INTERPRET``: the primitives are called on tensors of the CPU, but
a launch only compiles the kernel for the types, widths and options that it was launched with.

    python tests/kernels/sm90.py rows
    python tests/kernels/sm90.py edges "float32 64 highest" "bfloat16 64 highest"
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import mangle_type

from gsym import kernels
from gsym.kernels import Segments, Tiles
from gsym.kernels import triton as triton_backend
from gsym.kernels.triton import launch

TARGET = GPUTarget("cuda", 90, 32)
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
OPTIONS = ("num_warps", "num_stages", "maxnreg")


def specialised(kernel, args, options):
    """What the launcher would compile for these arguments."""
    names = kernel.arg_names
    values = dict(zip(names, args, strict=False)) | options
    signature, constants, attributes = {}, {}, {}
    for i, name in enumerate(names):
        value = values[name]
        if kernel.params[i].is_constexpr or value is None or (type(value) is int and value == 1):
            signature[name], constants[(i,)] = "constexpr", value
            continue
        signature[name] = mangle_type(value)
        aligned = isinstance(value, torch.Tensor) or (type(value) is int and value % 16 == 0)
        if aligned:
            attributes[(i,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constants, attributes)


def resources(compiled):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        text = subprocess.run(
            [TOOLS / "cuobjdump", "-res-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
    registers, stack, _, local = map(int, found.groups())
    ptx = compiled.asm["ptx"]
    return {
        "registers": registers,
        "stack": stack + local,
        "shared": compiled.metadata.shared,
        "wgmma": ptx.count("wgmma.mma_async"),
        "mma": ptx.count("mma.sync"),
        "warps": compiled.metadata.num_warps,
    }


def main(cases):
    seen = set()
    current = ""

    def compile_only(kernel, programs, x, *args, **options):
        if not programs:
            return
        given = {k: v for k, v in options.items() if k not in OPTIONS}
        settings = {k: v for k, v in options.items() if k in OPTIONS}
        source = specialised(kernel, args, given)
        key = source.hash() + str(settings)
        if key in seen:
            return
        seen.add(key)
        begin = time.monotonic()
        compiled = triton.compile(source, target=TARGET, options=settings)
        row = {"case": current, "kernel": kernel.__name__, **resources(compiled)}
        row["seconds"] = round(time.monotonic() - begin, 1)
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()

    launch.launch = compile_only
    triton_backend.INTERPRETED = True  # lets tensors of the CPU through
    for case, call in cases:
        current = case
        call()


def row_cases():
    torch.manual_seed(0)
    index = torch.randint(16, (4096,))
    segments = Segments.from_index(index, 16)
    source = Segments.from_index(torch.randint(64, (4096,)), 64)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for c in (1, 2, 3, 4, 8, 16, 32, 64, 100, 128):
            name = f"{dtype} {c}".removeprefix("torch.")
            x = torch.zeros(2, 4096, c, dtype=dtype)
            for op in ("segment_sum", "segment_max"):
                call = getattr(kernels, op)
                yield f"{op} {name}", lambda x=x, call=call: call(x, segments, backend="triton")
            y = torch.zeros(2, 64, c, dtype=dtype, requires_grad=True)
            w = torch.zeros(4096, dtype=dtype, requires_grad=True)

            def gather(y=y, w=w):
                kernels.gather_segment_sum(y, source, segments, backend="triton").sum().backward()
                out = kernels.gather_segment_sum(y, source, segments, w, backend="triton")
                out.sum().backward()

            yield f"gather_segment_sum {name}", gather
            if c > 1:

                def linear(c=c, dtype=dtype):
                    x = torch.zeros(2, 4096, c, dtype=dtype, requires_grad=True)
                    w = torch.zeros(16, c, c, dtype=dtype, requires_grad=True)
                    s = torch.zeros(2, 16, c, dtype=dtype)
                    tiles = Tiles(segments, c, c)
                    y = kernels.indexed_linear(x, w, tiles, s, backend="triton")
                    y.backward(torch.zeros_like(y))

                yield f"indexed_linear {name}", linear


def edge_cases():
    n, e = 256, 4096
    rng = torch.Generator().manual_seed(0)
    target = torch.randint(n, (e,), generator=rng).sort().values
    source = Segments.from_index(torch.randint(n, (e,), generator=rng), n)
    segments = Segments.from_index(target, n)

    def call(h, dtype):
        def part(*shape):
            return torch.zeros(*shape, dtype=dtype, requires_grad=True)

        options = {"pos": part(2, n, 3), "distance": part(h)}
        options["coord"] = (part(h, h), part(h), part(1, h))
        options["edge_attr"] = (part(e, 4), part(h, 4))
        options["gate"] = (part(1, h), part(1))
        options |= {"normalize": True, "tanh": True, "clamp": 2.0}
        args = (part(2, n, h), part(2, n, h), source, segments, part(h, h), part(h))
        y, moves = kernels.edge_mlp_sum(*args, **options, backend="triton")
        (y.sum() + moves.sum()).backward()

    for dtype, precision in (
        (torch.float32, "highest"),
        (torch.float32, "high"),
        (torch.bfloat16, "highest"),
        (torch.float16, "highest"),
    ):
        for h in (32, 64, 128):
            name = f"{dtype} {h} {precision}".removeprefix("torch.")

            def run(h=h, dtype=dtype, precision=precision):
                torch.set_float32_matmul_precision(precision)
                call(h, dtype)

            yield name, run


if __name__ == "__main__":
    torch.set_num_threads(1)
    kinds = {"rows": row_cases, "edges": edge_cases}
    kind, *chosen = sys.argv[1:]
    main((name, call) for name, call in kinds[kind]() if not chosen or name in chosen)
