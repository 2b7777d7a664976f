"""Which source code a step runs, as a hash: a step whose code changed is out of date.

Comments, docstrings and layout do not count. Modules that only carry values and messages around do not
count either: the values themselves reach a step by its ``--settings``.
"""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent
PLUMBING = frozenset({"config", "errors", "files", "progress", "provenance", "sections", "source", "validation"})


def code_hash(module: str) -> str:
    """First 16 hexadecimal digits of the SHA-256 of all of `matvlm` that a step runs.

    These are the files beside ``module`` in its package, YAML and templates included, and every module that
    they import from `matvlm`, at whatever depth.

    Args:
        module: the step's module, as `matvlm.distill.run`.

    Raises:
        FileNotFoundError: there is no such module.
    """
    digest = hashlib.sha256()
    for path in source_files(module):
        digest.update(f"{path.relative_to(ROOT)} {_content(path)}\n".encode())
    return digest.hexdigest()[:16]


def source_files(module: str) -> list[Path]:
    """Files that `code_hash` covers, sorted."""
    start = ROOT.joinpath(*module.split(".")[1:]).with_suffix(".py")
    if not start.is_file():
        raise FileNotFoundError(f"no module {module}: {start}")
    package = (path for path in start.parent.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    waiting, found = {start, *package}, set()
    while waiting:
        path = waiting.pop()
        found.add(path)
        if path.suffix == ".py":
            waiting |= set(_imports(path)) - found
    return sorted(found)


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@cache
def _imports(path: Path) -> tuple[Path, ...]:
    """Files of `matvlm` that a file imports anywhere in it, all but `PLUMBING`."""
    names: list[str] = []
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    files = []
    for name in names:
        first, *parts = name.split(".")
        if first != "matvlm" or (parts and parts[0] in PLUMBING):
            continue
        base = ROOT.joinpath(*parts)
        files += [file for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file()]
    return tuple(files)


@cache
def _content(path: Path) -> str:
    """A file's hash; of Python without docstrings, comments and positions."""
    if path.suffix != ".py":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    tree = _tree(path)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [line for line in body if not _is_text(line)]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    )
