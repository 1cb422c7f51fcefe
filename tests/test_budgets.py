"""House rules that linters do not know: sizes, names, cycles, and who may print or read the environment.

Reads the source as text and syntax trees; imports nothing of the product.
"""

from __future__ import annotations

import ast
import graphlib
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
PACKAGE = SOURCE / "skyserve"

MAX_FUNCTION_LINES, P90_FUNCTION_LINES = 80, 35
MAX_FILE_LINES, P90_FILE_LINES = 700, 450
MAX_PARAMETERS = 6

VAGUE_NAMES = {"util", "utils", "common", "helper", "helpers", "misc", "manager", "managers", "stuff", "core"}
DOCUMENTED = ("model", "decide")
"""Packages whose public names are all documented; so are those of every `base.py`."""

PRINTER = "cli/render.py"
ENVIRONMENT_READER = "config.py"
PROGRAMS = {"providers/agent.py", "providers/enclosure.py"}
"""Files that run by themselves, on other machines too, without the package: what they say goes to whoever ran them."""
UNTYPED_BORDER = "model/codec.py"
CATCHERS = {"cli/main.py", "controller/supervisor.py", "decide/mixing.py"}
"""Where `except Exception` is allowed: the command line's last line, what must outlive any failure, and a policy's."""


@dataclass(frozen=True)
class Module:
    path: Path

    @property
    def where(self) -> str:
        return self.path.relative_to(PACKAGE).as_posix()

    @property
    def name(self) -> str:
        parts = self.path.relative_to(SOURCE).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @cached_property
    def text(self) -> str:
        return self.path.read_text("utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, str(self.path))

    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node


MODULES = [Module(path) for path in sorted(PACKAGE.rglob("*.py"))]
NAMES = {module.name for module in MODULES}


def _lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _p90(sizes: list[int]) -> float:
    return statistics.quantiles(sizes, n=10)[-1]


def test_functions_are_short() -> None:
    sizes = {f"{module.where}:{f.lineno} {f.name}": _lines(f) for module in MODULES for f in module.functions()}
    assert not {where: size for where, size in sizes.items() if size > MAX_FUNCTION_LINES}
    assert _p90(list(sizes.values())) <= P90_FUNCTION_LINES


def test_files_are_short() -> None:
    sizes = {module.where: len(module.text.splitlines()) for module in MODULES}
    assert not {where: size for where, size in sizes.items() if size > MAX_FILE_LINES}
    assert _p90(list(sizes.values())) <= P90_FILE_LINES


def test_functions_take_few_parameters() -> None:
    found = []
    for module in MODULES:
        for function in module.functions():
            arguments = function.args
            named = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
            count = len([name for name in named if name not in ("self", "cls")])
            if count > MAX_PARAMETERS:
                found.append(f"{module.where}:{function.lineno} {function.name} takes {count}")
    assert not found


def test_module_names_say_something() -> None:
    assert not [module.where for module in MODULES if VAGUE_NAMES & set(module.path.stem.lower().split("_"))]


def test_every_module_says_what_it_knows() -> None:
    assert not [module.where for module in MODULES if not ast.get_docstring(module.tree)]


def test_public_names_of_the_contracts_are_documented() -> None:
    found = []
    for module in MODULES:
        inside = module.where.split("/")[0] in DOCUMENTED
        if inside or module.path.name in ("base.py", "errors.py", "clock.py", "config.py"):
            found += [f"{module.where}:{line} {name}" for line, name in _undocumented(module.tree)]
    assert not found


def _undocumented(node: ast.Module | ast.ClassDef) -> Iterator[tuple[int, str]]:
    for child in node.body:
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or child.name.startswith("_"):
            continue
        overload = any(ast.unparse(decorator).endswith("overload") for decorator in child.decorator_list)
        if not ast.get_docstring(child) and not overload:
            yield child.lineno, child.name
        if isinstance(child, ast.ClassDef):
            yield from _undocumented(child)


def test_modules_do_not_import_each_other_in_circles() -> None:
    try:
        graphlib.TopologicalSorter({module.name: set(_imports(module)) for module in MODULES}).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def _imports(module: Module) -> Iterator[str]:
    """Modules of the product that this one imports when it runs; an import in a function can close a circle too."""
    for node in _running_code(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in NAMES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from package import module` depends on the module; `from module import name` on the module itself.
            for alias in node.names:
                target = f"{node.module}.{alias.name}"
                found = target if target in NAMES else node.module
                if found in NAMES and found != module.name:
                    yield found


def _running_code(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        yield child
        yield from _running_code(child)


def test_only_render_prints() -> None:
    found = []
    for module in MODULES:
        if module.where == PRINTER or module.where in PROGRAMS:
            continue
        for node in ast.walk(module.tree):
            said = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if said in {"print", "click.echo", "click.secho", "sys.stdout.write", "sys.stderr.write"}:
                found.append(f"{module.where}:{node.lineno} {said}")
    assert not found


def test_only_config_reads_the_environment() -> None:
    found = []
    for module in MODULES:
        if module.where == ENVIRONMENT_READER or module.where in PROGRAMS:
            continue
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Attribute) and node.attr in {"environ", "environb", "getenv"}:
                found.append(f"{module.where}:{node.lineno}")
    assert not found


def test_any_is_for_the_codec_alone() -> None:
    found = []
    for module in MODULES:
        for node in ast.walk(module.tree):
            imported = isinstance(node, ast.ImportFrom) and node.module == "typing"
            named = imported and any(alias.name == "Any" for alias in node.names)
            if named or (isinstance(node, ast.Attribute) and ast.unparse(node) == "typing.Any"):
                found.append(f"{module.where}:{node.lineno}")
    assert not [where for where in found if not where.startswith(UNTYPED_BORDER)]


def test_only_the_outermost_catch_everything() -> None:
    found = []
    for module in MODULES:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ExceptHandler) and _catches_everything(node):
                found.append(f"{module.where}:{node.lineno}")
    assert not [where for where in found if where.split(":")[0] not in CATCHERS]


def _catches_everything(handler: ast.ExceptHandler) -> bool:
    last = handler.body[-1]
    if isinstance(last, ast.Raise) and last.exc is None:
        return False  # cleans up and lets it pass
    if handler.type is None:
        return True
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(ast.unparse(kind) in {"Exception", "BaseException"} for kind in kinds)
