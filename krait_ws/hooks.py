"""What kind of route script a file is, told from its text: nothing of it is run.

Comes in: a ``.py`` file. Goes out: its code and the hooks that it defines.

Thread: any; it reads the disk, so not the network loop.
"""

from __future__ import annotations

import ast
from pathlib import Path
from types import CodeType

_HOOKS = frozenset({"websocket", "http"})


def compile_script(file: Path) -> tuple[CodeType, frozenset[str]]:
    """The code of a route script and which of ``websocket`` and ``http`` it defines; with none of them it has the
    script form.

    Raises:
        SyntaxError: The file is no Python, with its name and line; or a hook is no plain function.
        OSError: It cannot be read.
    """
    try:
        tree = ast.parse(file.read_bytes(), str(file))
    except ValueError as error:  # Python before 3.12 says so of a NUL byte
        raise SyntaxError(str(error)) from None
    hooks = _HOOKS & _bound_names(tree)
    return compile(tree, str(file), "exec", dont_inherit=True), hooks


def _bound_names(tree: ast.Module) -> set[str]:
    """The names of functions that the top level of a file may bind: by ``def``, assignment or ``from … import``."""
    names: set[str] = set()
    statements: list[ast.stmt] = list(tree.body)
    for statement in statements:
        match statement:
            case ast.FunctionDef(name=name):
                names.add(name)
            case ast.AsyncFunctionDef(name=name) if name in _HOOKS:
                raise SyntaxError(
                    f"{name}(request) must be a plain function: krait-ws calls it in a thread, so it may block"
                )
            case ast.Assign(targets=targets):
                names.update(target.id for target in targets if isinstance(target, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
            case ast.ImportFrom(names=aliases):
                names.update(alias.asname or alias.name for alias in aliases)
            case ast.If() | ast.Try() | ast.With():
                statements += [
                    child
                    for part in ("body", "orelse", "finalbody")
                    for child in getattr(statement, part, [])
                    if isinstance(child, ast.stmt)
                ]
            case _:
                pass
    return names
