"""Which faults there are, and a sample of them.

Operators come from cosmic-ray, and two more from here: a statement is dropped, a function returns
``None``. Of every place in the source one fault is drawn, and of all places those of the smallest
hash with the seed, so the sample hardly moves when a file changes.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from cosmic_ray.ast import Visitor, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator, operator_names
from parso.python.tree import Name

from gsym_bench.suite.errors import BenchmarkError

# Cosmic-ray's operators on variables need their names as arguments.
_SKIPPED = ("VariableReplacer", "VariableInserter")
# Most of the nodes of a syntax tree; no operator changes one.
_UNCHANGED = {"name", "newline", "string", "trailer", "arglist", "atom_expr", "endmarker"}


class DropStatement(Operator):
    """Replace a call, an augmented assignment or a ``raise`` that is a statement by ``pass``."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        """See the base class."""
        if node.type == "simple_stmt":
            statement = node.children[0]
            if statement.type in ("atom_expr", "raise_stmt") or _is_augmented(statement):
                yield statement.start_pos, statement.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        """See the base class."""
        node.children[0] = _name("pass", node.children[0])
        return node

    @classmethod
    def examples(cls) -> tuple[Any, ...]:
        """See the base class."""
        return ()


class ReturnNone(Operator):
    """Replace what a function returns by ``None``."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        """See the base class."""
        if node.type == "return_stmt":
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        """See the base class."""
        node.children[1:] = [_name("None", node.children[1])]
        return node

    @classmethod
    def examples(cls) -> tuple[Any, ...]:
        """See the base class."""
        return ()


_OWN = {"gsym/DropStatement": DropStatement, "gsym/ReturnNone": ReturnNone}


@dataclass(frozen=True)
class Fault:
    """One change of one file.

    Attributes:
        path: File, from the root of the repository.
        operator: Name of the operator.
        occurrence: Which of the places in the file that the operator can change.
        line: Number of the first line that changes.
        scope: Class and function around it.
        before: The lines that change, without their indentation.
        after: What they become.
    """

    path: str
    operator: str
    occurrence: int
    line: int
    scope: str
    before: str
    after: str

    @property
    def key(self) -> str:
        """The same for the same change of the same lines, wherever they have moved."""
        words = [self.path, self.scope, self.operator, self.before, self.after]
        return digest(json.dumps(words))[:12]

    def plant(self, source: str) -> str:
        """The file with the fault."""
        code = mutate_code(source, _operator(self.operator), self.occurrence)
        if code is None:
            raise BenchmarkError(f"{self.path} has changed: there is no place for {self}")
        return code


def draw(root: Path, targets: list[str], count: int, seed: int) -> list[Fault]:
    """A sample of faults in all targets: one per place, in the order of files.

    Args:
        root: The repository.
        targets: Files and folders below it.
        count: How many.
        seed: Which.

    Raises:
        BenchmarkError: There are fewer places than ``count``.
    """
    ranked = []
    for path in sorted(path for target in targets for path in files_of(root, target)):
        source = path.read_text(encoding="utf-8")
        name, text = path.relative_to(root).as_posix(), source.splitlines()
        seen: Counter[str] = Counter()
        for (line, column), choices in places(source).items():
            words = f"{seed} {name} {text[line - 1]} {column}"
            seen[words] += 1
            ranked.append((digest(f"{words} {seen[words]}"), name, source, choices))
    ranked.sort(key=lambda item: item[:2])
    sample: dict[str, Fault] = {}
    for rank, name, source, choices in ranked:
        if len(sample) == count:
            break
        for operator, occurrence in sorted(choices, key=lambda choice: digest(f"{rank}{choice}")):
            fault = describe(source, name, operator, occurrence)
            if fault is not None and fault.key not in sample:
                sample[fault.key] = fault
                break
    if len(sample) < count:
        raise BenchmarkError(f"expected at most {len(sample)} faults, got --count {count}")
    return sorted(sample.values(), key=lambda f: (f.path, f.line, f.operator, f.occurrence))


def places(source: str) -> dict[tuple[int, int], list[tuple[str, int]]]:
    """Where a source can be changed: position to operators, each with its count of the place."""
    found: dict[tuple[int, int], list[tuple[str, int]]] = {}
    names = [name for name in operator_names() if not name.endswith(_SKIPPED)]
    operators = {name: _operator(name) for name in [*names, *_OWN]}
    counts = dict.fromkeys(operators, 0)

    class Count(Visitor):
        def visit(self, node: Any) -> Any:
            if node.type not in _UNCHANGED:
                for name, operator in operators.items():
                    for start, _ in operator.mutation_positions(node):
                        found.setdefault(tuple(start), []).append((name, counts[name]))
                        counts[name] += 1
            return node

    Count().walk(get_ast(source))
    return found


def describe(source: str, path: str, operator: str, occurrence: int) -> Fault | None:
    """A fault, or ``None`` where the code would mean the same, as in annotations, or nothing."""
    code = mutate_code(source, _operator(operator), occurrence)
    try:
        if code is None or _meaning(code) == _meaning(source):
            return None
    except SyntaxError:
        return None
    old, new = source.splitlines(), code.splitlines()
    first = next(i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b)
    last = 0
    while last < min(len(old), len(new)) - 1 - first and old[-1 - last] == new[-1 - last]:
        last += 1
    before = " ".join(line.strip() for line in old[first : len(old) - last])
    after = " ".join(line.strip() for line in new[first : len(new) - last])
    scope = _scope(source, first + 1)
    return Fault(path, operator, occurrence, first + 1, scope, before, after)


def files_of(root: Path, target: str) -> list[Path]:
    """The Python files of a target: a file, or all in a folder, be it named ``x.py`` or ``x``."""
    path = root / target
    if not path.exists() and path.with_suffix("").is_dir():
        path = path.with_suffix("")
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def belongs(path: str, target: str) -> bool:
    """Whether a file is of a target."""
    return path == target or path.startswith(f"{target.removesuffix('.py')}/")


def digest(text: str) -> str:
    """Some hexadecimal digits that tell one text from another."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _operator(name: str) -> Operator:
    return _OWN[name]() if name in _OWN else get_operator(name)()


def _is_augmented(statement: Any) -> bool:
    if statement.type != "expr_stmt":
        return False
    sign = statement.children[1]
    return sign.type == "operator" and sign.value != "="


def _name(word: str, instead_of: Any) -> Name:
    return Name(word, instead_of.start_pos, prefix=instead_of.get_first_leaf().prefix)


@lru_cache(4)  # of the source itself, beside each of its faults
def _meaning(code: str) -> str:
    """The syntax tree without annotations and docstrings."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value = ast.Constant(None)
    return ast.dump(tree)


def _scope(source: str, line: int) -> str:
    """Names of the classes and functions around a line."""
    kinds = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
    names = [
        (node.lineno, node.name)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, kinds) and node.lineno <= line <= (node.end_lineno or node.lineno)
    ]
    return ".".join(name for _, name in sorted(names)) or "module"
