"""The command ``build-kernels``."""

from __future__ import annotations

from rich.console import Console

from gsym._cli._common import Directory, app
from gsym._console import UsageError
from gsym.kernels.cpp import library


@app.command(name="build-kernels")
def build_kernels(*, march: str = "native", out: Directory = None) -> None:
    """Compile the kernels ahead of time, for machines and images without a compiler.

    For example, and then set GSYM_CACHE_DIR=/opt/gsym where it runs:

      gsym build-kernels --march x86-64-v3 --out /opt/gsym

    Args:
        march: Processor to build for, as the compiler names it: native is this one, x86-64-v3 any
            with AVX2, x86-64-v4 any with AVX-512. What another cannot run is refused there.
        out: Folder to write to, readable by all; by default the user's cache.
    """
    try:
        path, record = library.prebuild(march, out)
    except RuntimeError as error:
        raise UsageError(str(error)) from error
    console = Console(highlight=False)
    console.print(f"The kernels are in {path}", soft_wrap=True)
    console.print(f"They need {', '.join(record.needs or ['nothing more'])}", soft_wrap=True)
