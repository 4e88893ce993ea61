"""Which extra of gsym brings a package that is missing."""

from __future__ import annotations

# By the name that is imported. What other extras bring, and the suite needs, is in `bench` too.
EXTRAS = {
    **dict.fromkeys(["rich", "tyro", "pandas", "cloudpickle", "filelock", "lightning"], "bench"),
    **dict.fromkeys(["matplotlib", "PIL", "pooch", "psutil", "requests"], "bench"),
    **dict.fromkeys(["sknetwork", "networkit", "pymetis"], "cluster"),
    **dict.fromkeys(["h5py", "pyarrow"], "files"),
    **dict.fromkeys(["cosmic_ray", "coverage"], "mutants"),
    **dict.fromkeys(["igraph", "pynauty"], "sym"),
    **dict.fromkeys(["ray"], "ray"),
    **dict.fromkeys(["torch_scatter"], "scatter"),
    **dict.fromkeys(["selenium"], "dev"),
}


def missing(error: ImportError) -> str | None:
    """Which extra to install after an import failed; ``None`` if none would help."""
    name = (error.name or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and name in EXTRAS:
        return f"gsym-bench needs {name}; install it with: pip install 'gsym[{EXTRAS[name]}]'"
    # The library itself says which extra it asks for.
    return str(error) if "pip install 'gsym[" in str(error) else None
