"""Where gold comes from, and whether it can be what the config says. Imports no torch."""

from __future__ import annotations

import ast
import importlib.util
import os
import sys
from pathlib import Path

from workbench.config import Comparison
from workbench.errors import ConfigError


def gold_source(comparison: Comparison) -> Path | None:
    """The file of gold.python's module, or gold.reward_model's folder; None for a world's gold or none."""
    gold = comparison.gold
    if gold is None or gold.world:
        return None
    if gold.reward_model is not None:
        return Path(gold.reward_model).resolve()
    assert gold.python is not None
    module, _, function = gold.python.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # appended, never prepended: a stray file must not shadow an installed module
    try:
        spec = importlib.util.find_spec(module)
    except ImportError:
        spec = None
    if spec is None or spec.origin is None:
        raise ConfigError(
            f"no module {module!r}; expected one that is installed or lies in the working directory",
            where="gold.python",
        )
    path = Path(spec.origin).resolve()
    if path.suffix == ".py":
        check_defines(path, function)
    return path


def check_defines(path: Path, name: str) -> None:
    """Refuses a gold module whose source does not bind the name, before hours of training end there.

    Reads the source and does not import it: a scorer may import torch. Star imports and `__getattr__` pass.

    Raises:
        ConfigError: The source cannot be parsed, or nothing in it is called so.
    """
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except (OSError, SyntaxError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as Python: {error}", where="gold.python") from error
    bound: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name[0] != "_"]
    if not bound & {name, "*", "__getattr__"}:
        raise ConfigError(
            f"{path} has no {name!r}; expected a function (prompts: list[str], responses: list[str]) -> list[float]. "
            f"It has {', '.join(functions[:10]) or 'no functions'}",
            where="gold.python",
        )
