"""The house: which room may import which, and what the package may depend on."""

import ast
import importlib
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
import torch

import gsym
from gsym.choosing.estimator import SubgroupSearch

ROOT = Path(gsym.__file__).parent

# Each room may import the rooms listed; nothing points back.
ROOMS = {
    "errors": set(),
    "_validate": {"errors"},
    "_child": set(),
    "_graphs": {"errors", "_validate"},
    "_ego": {"errors", "_validate"},
    "groups": {"errors", "_validate", "_child", "_graphs"},
    "kernels": {"errors", "_validate"},
    "_files": {"errors", "_validate", "_graphs", "groups"},
    "risk": {"errors", "_validate", "_graphs", "groups"},
    "coarsening": {"errors", "_validate", "_child", "_graphs", "groups", "risk"},
    "choosing": {"errors", "_validate", "_graphs", "_files", "groups", "risk", "coarsening"},
    "nn": {"errors", "_validate", "groups", "kernels"},
    "check": {"_validate", "groups"},
    "conversion": {"errors", "_validate", "_graphs", "groups", "nn"},
    "transforms": {"errors", "_validate", "_graphs", "_ego", "groups", "coarsening", "nn", "check"},
    "datasets": {"errors", "_files"},
    "__init__": {
        "errors",
        "_graphs",
        "_files",
        "groups",
        "coarsening",
        "choosing",
        "risk",
        "kernels",
        "nn",
        "check",
        "conversion",
        "transforms",
        "datasets",
    },
    "_console": {"_files"},
    "_cli": {
        "errors",
        "_validate",
        "_console",
        "_graphs",
        "_files",
        "groups",
        "coarsening",
        "choosing",
        "kernels",
    },
    "__main__": {"_validate"},
}
DEPENDENCIES = {
    "torch",
    "torch_geometric",
    "numpy",
    "scipy",
    "networkx",
    "sklearn",
    "sympy",  # a dependency of torch
    "jinja2",
    "markupsafe",  # a dependency of jinja2
}
TRITON = ("launch", "rows", "edge_math", "edges")
COMMANDS = ("__init__", "_common", "building", "choosing", "coarsening", "symmetry")
# Back-ends that are imported on first use.
OPTIONAL = {
    "kernels/torch_scatter.py": {"torch_scatter"},
    "coarsening/methods/_metis.py": {"pymetis"},
    "coarsening/methods/_leiden.py": {"networkit"},
    **{f"_cli/{name}.py": {"tyro", "rich"} for name in COMMANDS},
    "_console.py": {"rich"},
    **{f"kernels/triton/{name}.py": {"triton"} for name in TRITON},
}
# What takes long to import and is not needed to build and run a layer is imported on first use.
HEAVY = {
    "scipy.sparse",
    "scipy.sparse.csgraph",
    "sklearn.cluster",
    "sklearn.neighbors",
    "sympy.combinatorics",
    "gsym.choosing.page",  # imports jinja2 and scipy.spatial
    "gsym.choosing.estimator",  # derives from classes of scikit-learn
    "gsym.choosing.reconstruction",  # imports such a class
    "torch_geometric.nn.norm",
    "gsym.check.module",  # imports torch.distributed, torch.export and the like
}
MODULES = sorted(ROOT.rglob("*.py"))


def room(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(tree):
    """Names of the modules that a syntax tree imports, and whether a function imports each."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inner = {node for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in inner) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module == "gsym":
                yield from ((f"gsym.{alias.name}", node in inner) for alias in node.names)
            else:
                yield node.module, node in inner


def violations(path, source):
    found = []
    allowed = DEPENDENCIES | STANDARD | OPTIONAL.get(path.relative_to(ROOT).as_posix(), set())
    for name, inside in imports(ast.parse(source)):
        top, _, rest = name.partition(".")
        # The Triton back-end is optional, and imported by name on first use.
        if inside and name not in {"gsym.kernels", *HEAVY}:
            found.append(f"{name} is imported inside a function")
        if top == "gsym":
            target = rest.split(".")[0]
            if target != room(path) and target not in ROOMS[room(path)]:
                found.append(f"{room(path)} imports {target}")
        elif top not in allowed:
            found.append(f"{name} is not a dependency")
    return found


STANDARD = set(__import__("sys").stdlib_module_names)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_plan(path):
    assert violations(path, path.read_text()) == []


@pytest.mark.parametrize(
    ("room_name", "source"),
    [
        ("errors", "from gsym._validate import check_whole"),
        ("groups", "from gsym.nn import OrbitLinear"),
        ("kernels", "import gsym.groups"),
        ("check", "from gsym import nn"),
        ("nn", "import rich"),
        ("kernels", "import torch_scatter"),
        ("nn", "def f():\n    import numpy"),
        ("nn", "class C:\n    def f(self):\n        import sklearn"),
        ("nn", "if True:\n    from gsym import coarsening"),
        ("risk", "from gsym.coarsening import coarsen"),
        ("risk", "from gsym.choosing import choose_group"),
        ("coarsening", "from gsym.choosing.choice import Candidate"),
        ("groups", "from gsym.risk import samples"),
        ("coarsening/methods", "from gsym import _files"),
        ("choosing/page", "from gsym import nn"),
    ],
)
def test_the_rule_can_fail(room_name, source):
    assert violations(ROOT / room_name / "x.py", source)


def test_no_function_shares_its_name_with_a_module():
    """A package would then hold one or the other, by the order of imports."""
    for path in ROOT.rglob("__init__.py"):
        parts = path.parent.relative_to(ROOT.parent).parts
        package = importlib.import_module(".".join(parts))
        for name in {file.stem for file in path.parent.glob("*.py")} - {"__init__"}:
            assert isinstance(getattr(package, name, package), ModuleType), f"{parts}: {name}"


def too_long(paths):
    return [path for path in paths if len(path.read_text().splitlines()) > 550]


def test_files_stay_short(tmp_path):
    assert too_long(MODULES) == []
    long = tmp_path / "long.py"
    long.write_text("x = 1\n" * 551)
    assert too_long([long]) == [long]


def test_the_plan_has_no_cycle():
    order = list(ROOMS)
    for name, allowed in ROOMS.items():
        assert all(order.index(other) < order.index(name) for other in allowed)


def test_import_is_light():
    # A fresh interpreter, because tests import all of these.
    names = ["sklearn", "scipy", "scipy.stats", "scipy.spatial", "sympy", "networkx", "matplotlib"]
    names += ["torch_geometric", "triton", "jinja2"]
    code = f"import sys, gsym; print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_late_names_are_found():
    for module in (gsym, gsym.choosing):
        assert module.SubgroupSearch is SubgroupSearch
        with pytest.raises(AttributeError, match=f"'{module.__name__}' has no attribute 'Nobody'"):
            _ = module.Nobody


def test_the_version_is_that_of_the_package():
    assert gsym.__version__ == metadata.version("gsym")


def test_public_names_exist():
    for name in gsym.__all__:
        assert hasattr(gsym, name)
    for name in ("Partition", "ClusterGroup", "PermutationGroup", "Orbits"):
        assert name in gsym.__all__
    assert {"OrbitLinear", "GNetConv", "GNet"} <= set(gsym.nn.__all__)


def test_layers_state_their_symmetry():
    for name in gsym.nn.__all__:
        part = getattr(gsym.nn, name)
        if not issubclass(part, torch.nn.Module):  # tables that a layer takes
            continue
        doc = part.__doc__
        for section in ("Args:", "Shapes:", "Symmetry:", "Example:", "Reference:"):
            assert section in doc, f"{name} has no {section}"


def private_of_kernels(source):
    """What a layer takes of the kernels that is theirs alone, and back-ends that it names."""
    backends, found = set(gsym.kernels._backends.BACKENDS), []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "kernels":
            names = [f"gsym.kernels.{node.attr}"]
        elif isinstance(node, ast.Constant) and node.value in backends:
            found.append(f"names the back-end {node.value}")
        for name in (name for name in names if name.startswith("gsym.kernels.")):
            parts = name.split(".")[2:]
            if any(part.startswith("_") or part in backends for part in parts):
                found.append(f"takes {name}")
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "nn").glob("*.py")), ids=lambda p: p.name)
def test_layers_take_nothing_private_of_the_kernels(path):
    assert private_of_kernels(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "from gsym.kernels._backends import choose",
        "from gsym.kernels import _operators",
        "from gsym.kernels.segments import _tiles",
        "import gsym.kernels.cpp.library",
        "from gsym import kernels\nkernels._call.run()",
        "from gsym import kernels\nwith kernels.backend('native'):\n    pass",
    ],
)
def test_taking_something_private_is_seen(source):
    assert private_of_kernels(source)
