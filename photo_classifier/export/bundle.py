"""Puts a module and everything that it uses of this package into one file.

The text is taken from the modules themselves, so that the file cannot drift from them.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import photo_classifier

PACKAGE = "photo_classifier"
ROOT = Path(photo_classifier.__file__).parent.parent
Definition = ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign


@dataclass
class Module:
    """What the top level of a module defines and imports, by name; `imports` holds statements."""

    name: str
    lines: list[str]
    definitions: dict[str, Definition] = field(default_factory=dict)
    settings: list[ast.Assign] = field(default_factory=list)  # assignments to attributes of other modules
    imports: dict[str, str] = field(default_factory=dict)
    own: dict[str, tuple[str, str]] = field(default_factory=dict)  # module and name there, of this package


def read_module(name: str) -> Module:
    """Parses a module of the package; raises ValueError if its top level has what cannot be bundled."""
    text = ROOT.joinpath(*name.split(".")).with_suffix(".py").read_text(encoding="utf-8")
    module = Module(name, text.splitlines())
    for node in ast.parse(text).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            _read_import(module, node)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            module.definitions[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = [n for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
            module.definitions |= {target.id: node for target in targets}
            module.settings += [] if targets else [node]
        elif not _is_left_out(node):
            raise ValueError(f"{name}:{node.lineno} cannot be put into one file")
    return module


def _is_left_out(node: ast.stmt) -> bool:
    """Returns whether a statement is a docstring, an import for types or the call of `main`."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'")


def _read_import(module: Module, node: ast.Import | ast.ImportFrom) -> None:
    source = getattr(node, "module", None)
    for name in node.names if source != "__future__" else ():
        bound = name.asname or name.name
        if source and source.split(".")[0] == PACKAGE:
            module.own[bound] = (source, name.name)
        else:
            module.imports[bound] = ast.unparse(type(node)(**{**vars(node), "names": [name]}))


class _Names(ast.NodeVisitor):
    """Collects the names that run, and not those of annotations, and the imports of this package inside functions."""

    def __init__(self) -> None:
        self.used: set[str] = set()
        self.inner: list[ast.ImportFrom] = []

    def visit_Name(self, node: ast.Name) -> None:
        self.used.add(node.id)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.module.split(".")[0] == PACKAGE:
            self.inner.append(node)

    def visit_arg(self, node: ast.arg) -> None:
        pass

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value:
            self.visit(node.value)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for part in [*node.decorator_list, node.args, *node.body]:
            self.visit(part)


class Bundle:
    """The definitions that the main module reaches, and the imports of other packages that they need."""

    def __init__(self, main: str) -> None:
        self.modules: dict[str, Module] = {}
        self.reached: dict[str, dict[int, Definition]] = {}  # by module and line
        self.home: dict[str, str] = {}  # the module, or the import, that a name of the file stands for
        self.imports: set[str] = set()
        for name in self._module(main).definitions:
            self._reach(main, name)

    def _module(self, name: str) -> Module:
        if name not in self.modules:
            self.modules[name] = read_module(name)
            self.reached[name] = {}
            for node in self.modules[name].settings:
                self._include(name, node)
        return self.modules[name]

    def _reach(self, module_name: str, name: str) -> None:
        module = self._module(module_name)
        if name in module.own:
            self._reach(*module.own[name])
        elif name in module.definitions:
            self._claim(name, module_name)
            self._include(module_name, module.definitions[name])
        elif name in module.imports:
            self._claim(name, module.imports[name])
            self.imports.add(module.imports[name])

    def _claim(self, name: str, home: str) -> None:
        if self.home.setdefault(name, home) != home:
            raise ValueError(f"{name} is two things in one file: of {self.home[name]} and of {home}; rename one")

    def _include(self, module_name: str, node: Definition) -> None:
        if node.lineno in self.reached[module_name]:
            return
        self.reached[module_name][node.lineno] = node
        names, module = _Names(), self.modules[module_name]
        names.visit(node)
        # names of types alone must exist for those who read the annotations
        types = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} & module.imports.keys()
        self.imports |= {module.imports[name] for name in types}
        for inner in names.inner:
            for alias in inner.names:
                self._reach(inner.module, alias.name)
        for name in sorted(names.used):
            self._reach(module_name, name)

    def text(self, constants: Mapping[str, str], title: str) -> str:
        """Returns the file.

        Args:
            constants: values that replace those of constants in the main module, as source text.
            title: its docstring.
        """
        parts = [f'"""{title}"""\n\nfrom __future__ import annotations\n', "\n".join(self._import_lines())]
        for name in self._in_order():
            definitions = [
                _source(self.modules[name], node, constants) for _, node in sorted(self.reached[name].items())
            ]
            parts += [f"\n# --- {name.replace('.', '/')}.py ---", *definitions] if definitions else []
        return "\n".join(parts) + '\n\nif __name__ == "__main__":\n    raise SystemExit(main())\n'

    def _import_lines(self) -> list[str]:
        def rank(line: str) -> tuple[bool, bool, str]:
            return line.split()[1].split(".")[0] not in sys.stdlib_module_names, line.startswith("from"), line

        return sorted(self.imports, key=rank)

    def _in_order(self) -> Iterator[str]:
        """Yields the modules, each after those that it imports at its top level."""
        left = dict(self.modules)
        while left:
            name = next(n for n, m in left.items() if not {home for home, _ in m.own.values()} & left.keys())
            yield left.pop(name).name


def _source(module: Module, node: Definition, constants: Mapping[str, str]) -> str:
    """Returns the text of a definition with the comments above it, without imports of this package inside it."""
    start = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))]) - 1
    names = _Names()
    names.visit(node)
    dropped = {n for inner in names.inner for n in range(inner.lineno - 1, inner.end_lineno)}
    lines = [line for n, line in enumerate(module.lines) if start <= n < node.end_lineno and n not in dropped]
    if isinstance(node, ast.Assign) and (target := ast.unparse(node.targets[0])) in constants:
        return f"{target} = {constants[target]}"
    while start and module.lines[start - 1].startswith("#") and "# ---" not in module.lines[start - 1]:
        start -= 1
        lines.insert(0, module.lines[start])
    gap = "" if isinstance(node, ast.Assign | ast.AnnAssign) else "\n\n"
    return gap + "\n".join(lines)


def one_file(main: str, constants: Mapping[str, str], title: str) -> str:
    """Returns the text of one file that does what a module of this package does; arguments as for `Bundle.text`."""
    return Bundle(main).text(constants, title)
