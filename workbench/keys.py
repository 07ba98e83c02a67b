"""What a stage's key hashes, and how two keys' materials differ in words.

A key is the sha256 of the canonical JSON of everything that can change a stage's result: name, version, semantic
config, seed, input contents, device kind, dtype, threads, versions of the packages it computes with, and the code of
the project's modules that its function can reach.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from workbench import fsio
from workbench.errors import ConfigError
from workbench.types import StageRecord

PROJECT_PACKAGES = ("workbench", "pipelines")

# Left out of the code hash, with all that they import: they move files, lock, schedule, report and pass records on,
# and compute nothing that ends up in an artifact. A change in one of them must not retrain anything.
PLUMBING = frozenset(
    {
        "workbench",  # holds the version number alone
        "workbench.types",
        "workbench.errors",
        "workbench.fsio",
        "workbench.statcache",
        "workbench.manifest",
        "workbench.store",
        "workbench.store_index",
        "workbench.locks",
        "workbench.keys",
        "workbench.stages",
        "workbench.stage_log",
        "workbench.checkpoints",
        "workbench.worker",
        "workbench.ranks",
        "workbench.worker_pool",
        "workbench.build",
        "workbench.outcome",
        "workbench.executors",
    }
)


# --- code ------------------------------------------------------------------------------------------------------------


def module_hashes(function: str) -> dict[str, str]:
    """Hashes of the project's modules that a stage function can reach by import, without importing any.

    Args:
        function: "module:function".

    Returns:
        Module name -> sha256 of its docstring-stripped syntax tree; comments, docstrings and layout do not count.

    Raises:
        ConfigError: The module cannot be found or parsed.
    """
    start = function.partition(":")[0]
    if _source(start) is None:
        raise ConfigError(f"stage function {function!r}: there is no module {start!r}. Expected 'module:function'.")
    roots = {*PROJECT_PACKAGES, start.partition(".")[0]}
    hashes: dict[str, str] = {}
    todo = [start]
    while todo:
        module = todo.pop()
        if module in hashes or module in PLUMBING or module.partition(".")[0] not in roots:
            continue
        todo += _parents(module)
        path = _source(module)
        if path is None:
            continue  # a namespace package has no code; a name that is no module is an attribute
        digest, imports = _parsed(path, path.read_bytes())
        hashes[module] = digest
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        todo += [_absolute(name, level, package) for name, level in imports]
    return dict(sorted(hashes.items()))


def _parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def _absolute(name: str, level: int, package: str) -> str:
    if level == 0:
        return name
    parts = package.split(".")
    base = parts[: len(parts) - (level - 1)]
    return ".".join([*base, name] if name else base)


def _source(module: str) -> Path | None:
    """File of a module, found without importing it or its parents."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for location in spec.submodule_search_locations or ():
        base = Path(location, *rest)
        for candidate in (base / "__init__.py", base.with_name(base.name + ".py")):
            if candidate.is_file():
                return candidate
    return None


Parsed = tuple[str, tuple[tuple[str, int], ...]]  # digest of a module's syntax; (name, level) of its imports
_PARSED: dict[str, Parsed] = {}  # by sha256 of the source


def _parsed(path: Path, source: bytes) -> Parsed:
    content = hashlib.sha256(source).hexdigest()
    if content not in _PARSED:
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError) as error:
            raise ConfigError(f"cannot parse {path}: {error}", where=str(path)) from error
        _PARSED[content] = syntax_digest(tree), tuple(_imports(tree))
    return _PARSED[content]


def parsed_sources() -> dict[str, Parsed]:
    """What is known of the sources read so far, by their sha256: a worker that adopts it parses none of them again."""
    return dict(_PARSED)


def adopt_parsed(known: Mapping[str, Parsed]) -> None:
    """Takes over another process's `parsed_sources`."""
    _PARSED.update(known)


def syntax_digest(tree: ast.Module) -> str:
    """sha256 of a syntax tree without docstrings and positions."""
    bare = _WithoutDocstrings().visit(tree)
    return hashlib.sha256(ast.dump(bare, annotate_fields=False).encode()).hexdigest()


class _WithoutDocstrings(ast.NodeTransformer):
    """Drops every statement that is a bare string: docstrings, and strings that document a field."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return None
        return node

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        # Never an empty body, and `pass` beside a docstring is the same as either alone.
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and not node.body:
            node.body = [ast.Pass()]
        return node


def _imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(dotted name, relative level) of every import, function-local ones too, but for those under TYPE_CHECKING."""
    if isinstance(tree, ast.If) and _is_type_checking(tree.test):
        for statement in tree.orelse:
            yield from _imports(statement)
        return
    if isinstance(tree, ast.Import):
        for alias in tree.names:
            yield alias.name, 0
    elif isinstance(tree, ast.ImportFrom):
        yield tree.module or "", tree.level
        for alias in tree.names:  # `from package import name`: name may be a module
            yield f"{tree.module}.{alias.name}" if tree.module else alias.name, tree.level
    elif isinstance(tree, ast.Call) and tree.args and isinstance(tree.args[0], ast.Constant):
        name = tree.func.attr if isinstance(tree.func, ast.Attribute) else getattr(tree.func, "id", "")
        if name in ("import_module", "__import__") and isinstance(tree.args[0].value, str):
            yield tree.args[0].value, 0
    for node in ast.iter_child_nodes(tree):
        yield from _imports(node)


def _is_type_checking(test: ast.expr) -> bool:
    return getattr(test, "id", None) == "TYPE_CHECKING" or getattr(test, "attr", None) == "TYPE_CHECKING"


# --- key -------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def package_version(distribution: str) -> str:
    """Installed version of a distribution, or "absent"."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def package_versions(distributions: Sequence[str]) -> dict[str, str]:
    """Versions of the packages a stage computes with, and Python's own minor version (syntax trees depend on it)."""
    versions = {name: package_version(name) for name in distributions}
    return dict(sorted((versions | {"python": ".".join(platform.python_version_tuple()[:2])}).items()))


def digest(material: Mapping[str, Any]) -> str:
    """The key of a material: sha256 of its canonical JSON."""
    return hashlib.sha256(fsio.canonical_json(material).encode()).hexdigest()


# --- differences in words --------------------------------------------------------------------------------------------

_SHOWN = 6


def differences(material: Mapping[str, Any], earlier: StageRecord) -> str:
    """What changed between an earlier build and this one, in words; "" where nothing did.

    Args:
        material: As hashed into the key.
        earlier: The record to compare with.
    """
    new: dict[str, Any] = json.loads(fsio.canonical_json(material))
    old: dict[str, Any] = json.loads(fsio.canonical_json({name: getattr(earlier, name) for name in material}))
    changes = [f"{n} {_short(old[n])} -> {_short(new[n])}" for n in ("name", "version", "seed") if new[n] != old[n]]
    changes += _config_changes("config", old["config"], new["config"])
    for role in sorted(old["inputs"].keys() | new["inputs"].keys()):
        changes += _presence(f"input {role}", old["inputs"].get(role), new["inputs"].get(role), show=False)
    changes += [f"{n} {_short(old[n])} -> {_short(new[n])}" for n in ("device", "dtype", "threads") if new[n] != old[n]]
    if (now := new.get("processes", 1)) != earlier.processes:
        changes.append(f"processes {earlier.processes} -> {now}")
    for name in sorted(old["packages"].keys() | new["packages"].keys()):
        changes += _presence(f"package {name}", old["packages"].get(name), new["packages"].get(name), show=True)
    for name in sorted(old["modules"].keys() | new["modules"].keys()):
        changes += _presence(f"code of {name}", old["modules"].get(name), new["modules"].get(name), show=False)
    if len(changes) > _SHOWN:
        changes = [*changes[:_SHOWN], f"and {len(changes) - _SHOWN} more"]
    return ", ".join(changes)


def _presence(what: str, old: str | None, new: str | None, *, show: bool) -> list[str]:
    if old == new:
        return []
    if old is None:
        return [f"{what} is new"]
    if new is None:
        return [f"{what} is gone"]
    return [f"{what} {old} -> {new}" if show else f"{what} changed"]


def _config_changes(path: str, old: Any, new: Any) -> list[str]:
    if old == new and type(old) is type(new):
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for name in sorted(old.keys() | new.keys()):
            below = f"{path}.{name}"
            if name not in old:
                found.append(f"{below} is new ({_short(new[name])})")
            elif name not in new:
                found.append(f"{below} is gone")
            else:
                found += _config_changes(below, old[name], new[name])
        return found
    return [f"{path} {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
