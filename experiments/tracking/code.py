"""Code: which definitions can a function reach, and have they changed?

`digest_of` starts at some functions, follows each name in their syntax trees to the top-level
definition in our packages that it stands for, does the same there, and digests all that it reaches.
Comments, docstrings, printing, the messages of errors and the order of definitions do not count.
What cannot be resolved within a module counts as the whole module. A method counts with its class,
which is reached where an object is created or annotated.
"""

import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path

PACKAGES = ("experiments", "pruning", "models", "datasets")
ON_IMPORT = "<import>"  # stands for the statements of a module that define nothing
Entries = frozenset[tuple[str, str]]  # registry, such as pruning.criteria.CRITERIA, and key


@cache
def digest_of(
    starts: tuple[str, ...], root: Path, entries: Entries, ignored: tuple[str, ...]
) -> str:
    """32 hexadecimal digits that change if the code does.

    Args:
        starts: Functions by their full names, such as `experiments.rounds.rounds.prune_rounds`.
        root: The folder that our packages are in.
        entries: Where code looks up a key in one of these registries, only these entries count.
        ignored: Full names of packages, modules and definitions that are not followed.
    """
    reached: dict[str, tuple[list[str], dict[str, list[str]]]] = {}
    left = list(starts)
    while left:
        module, name = _resolve(left.pop(), root)
        full_name = f"{module.name}.{name}" if module else name
        if module is None or full_name in reached or _is_in(full_name, ignored):
            continue
        nodes = module.nodes(name)
        names = _names(module, nodes, root, entries)
        reached[full_name] = [ast.dump(node) for node in nodes], names
        packages = accumulate(module.name.split("."), "{}.{}".format)
        left += [f"{package}.{ON_IMPORT}" for package in packages]
        left += [target for targets in names.values() for target in targets]
    assert reached.keys() >= set(starts), f"{starts} are not all in {root}"
    return blake2b(json.dumps(reached, sort_keys=True).encode(), digest_size=16).hexdigest()


def _is_in(full_name: str, ignored: tuple[str, ...]) -> bool:
    return any(full_name == each or full_name.startswith(f"{each}.") for each in ignored)


@dataclass
class Module:
    """The top level of a file."""

    name: str
    definitions: dict[str, list[ast.AST]] = field(default_factory=dict)
    imports: dict[str, str] = field(default_factory=dict)  # a name, and what it stands for
    on_import: list[ast.AST] = field(default_factory=list)

    def nodes(self, name: str) -> list[ast.AST]:
        """A definition, an entry such as "CRITERIA[random]", or `ON_IMPORT`; else everything."""
        name, _, key = name.removesuffix("]").partition("[")
        found = self.definitions.get(name)
        if name == ON_IMPORT:
            found = self.on_import
        elif found is None:
            found = sum(self.definitions.values(), self.on_import)
        elif key:
            found = _entry(found, key) or found
        return [kept for node in found if (kept := _WithoutText().visit(node))]


def _entry(nodes: list[ast.AST], key: str) -> list[ast.AST]:
    """The value of a key in a literal dictionary, if it is one."""
    (node,) = nodes if len(nodes) == 1 else [None]
    table = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
    if not isinstance(table, ast.Dict):
        return []
    pairs = zip(table.keys, table.values, strict=True)
    return [value for k, value in pairs if isinstance(k, ast.Constant) and k.value == key]


@cache
def _module(name: str, root: Path) -> Module | None:
    path = root.joinpath(*name.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if name.partition(".")[0] not in PACKAGES or not file.is_file():
        return None
    module = Module(name)
    text = file.read_text().replace("from weight_loss.", "from ")  # as it is in a checkout
    for node in ast.parse(text).body:
        names = _defined(node)
        for each in names:
            module.definitions.setdefault(each, []).append(node)
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            module.imports |= _imports(node)
        if not names and not isinstance(node, ast.Import | ast.ImportFrom):
            module.on_import.append(node)
    return module


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else []
    targets = [node.target] if isinstance(node, ast.AnnAssign | ast.AugAssign) else targets
    names = (each for target in targets for each in ast.walk(target))
    return [n.id for n in names if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]


def _imports(node: ast.AST) -> dict[str, str]:
    """The names that imports in a tree define, and what each stands for."""
    found: dict[str, str] = {}
    for each in ast.walk(node):
        if isinstance(each, ast.ImportFrom):
            found |= {a.asname or a.name: f"{each.module}.{a.name}" for a in each.names}
        elif isinstance(each, ast.Import):
            for a in each.names:
                package = a.name.partition(".")[0]
                found |= {a.asname: a.name} if a.asname else {package: package}
    return found


def _resolve(dotted: str, root: Path) -> tuple[Module | None, str]:
    """Where a dotted name is defined, and its name there; None if it is in none of our packages."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        module = _module(".".join(parts[:length]), root)
        if module:
            name, more = "".join(parts[length : length + 1]), parts[length + 1 :]
            if name in module.imports and name not in module.definitions:
                return _resolve(".".join([module.imports[name], *more]), root)
            return module, name
    return None, dotted


def _names(
    module: Module, nodes: list[ast.AST], root: Path, entries: Entries
) -> dict[str, list[str]]:
    """The names in some code that are not local, with the full names of what they stand for."""
    names: dict[str, set[str]] = {}
    for node in nodes:
        scope = {name: f"{module.name}.{name}" for name in module.definitions}
        scope |= module.imports | _imports(node)
        for text, is_lookup in _mentions(node, frozenset()):
            first, dot, more = text.partition(".")
            if first in scope:  # else it is local or built in
                where, name = _resolve(scope[first] + dot + more, root)
                full_name = f"{where.name}.{name}" if where else name
                keys = [f"[{key}]" for table, key in entries if is_lookup and table == full_name]
                names.setdefault(text, set()).update(full_name + key for key in keys or [""])
    return {text: sorted(full_names) for text, full_names in names.items()}


def _mentions(
    node: ast.AST, parameters: frozenset[str], is_lookup: bool = False
) -> Iterator[tuple[str, bool]]:
    """Names such as `sizes.sparsity`, except parameters; and whether a key is looked up there."""
    dotted = _dotted(node)
    if dotted:
        if dotted.partition(".")[0] not in parameters:
            yield dotted, is_lookup
        return
    inner, tables = parameters, []
    if isinstance(node, ast.FunctionDef | ast.Lambda):
        arguments = ast.iter_child_nodes(node.args)
        inner |= {each.arg for each in arguments if isinstance(each, ast.arg)}
    elif isinstance(node, ast.Subscript) and not isinstance(node.slice, ast.Constant):
        tables = [node.value]
    elif isinstance(node, ast.Compare):
        tables = node.comparators
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                hidden = inner if name == "body" else parameters
                yield from _mentions(child, hidden, child in tables)


def _dotted(node: ast.AST) -> str:
    """`a.b.c` as text; "" of everything else."""
    if isinstance(node, ast.Attribute):
        before = _dotted(node.value)
        return before and f"{before}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


class _WithoutText(ast.NodeTransformer):
    """Removes docstrings, printing and the messages of errors."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        value = node.value
        prints = isinstance(value, ast.Call) and _dotted(value.func) == "print"
        return None if prints or isinstance(value, ast.Constant) else self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return ast.Raise(node.exc.func if isinstance(node.exc, ast.Call) else node.exc)

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        return ast.Assert(self.visit(node.test))
