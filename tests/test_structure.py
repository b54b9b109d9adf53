"""The laws that the packages write about themselves are true."""

from __future__ import annotations

import ast
import io
import re
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "kernel" / "isolated_python"
PARTS = sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))
SOURCES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
OWN = {path.stem if path.suffix else path.name for path in PACKAGE.iterdir()} - {"py", "__pycache__", "__init__"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(path: Path) -> Iterator[str]:
    """Every dotted name that is imported, wherever the import stands; relative ones made whole."""
    tree = ast.parse(path.read_text())
    inside = path.relative_to(PACKAGE.parent).parent.parts if PACKAGE in path.parents else ()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            near = inside[: len(inside) - node.level + 1] if node.level else ()
            yield from (".".join([*near, *filter(None, [node.module]), alias.name]) for alias in node.names)


def own_parts(path: Path) -> set[str]:
    """Which of our own parts are imported."""
    dotted = (name.split(".") for name in imported(path))
    return {words[1] for words in dotted if words[0] == "isolated_python" and len(words) > 1} & OWN


def law(part: Path) -> dict[str, str]:
    """The lines `Word: …` of a package's docstring; a line that begins with a space goes on with the one before."""
    text = ast.get_docstring(ast.parse((part / "__init__.py").read_text())) or ""
    lines = re.sub(r"\n[ \t]+", " ", text).splitlines()
    words = (line.partition(":") for line in lines)
    return {word: rest.strip() for word, mark, rest in words if mark and " " not in word}


@pytest.mark.parametrize("part", PARTS, ids=name_of)
def test_every_package_opens_with_its_law(part: Path) -> None:
    """Who runs it, whom it trusts, what it imports."""
    assert {"Runs", "Trusts", "Imports"} <= law(part).keys()


@pytest.mark.parametrize("part", PARTS, ids=name_of)
def test_a_package_imports_only_what_its_law_says(part: Path) -> None:
    """The line *Imports* names every other part of ours that the package's modules import."""
    said = {word.split()[0] for word in re.split(r"[,;]", law(part).get("Imports", "")) if word.strip()}
    found = set().union(*(own_parts(path) for path in part.rglob("*.py"))) - {part.name}
    assert found <= said


def test_only_linux_talks_to_libc() -> None:
    """No module outside `linux/` imports ctypes."""
    outside = [path for path in SOURCES if PACKAGE / "linux" not in path.parents]
    assert [name_of(path) for path in outside if "ctypes" in _roots(path)] == []


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=name_of)
def test_nobody_sleeps_or_pretends(path: Path) -> None:
    """No time.sleep and no mocks, in the product or in its tests."""
    tree = ast.parse(path.read_text())
    asked = {f"{node.value.id}.{node.attr}" for node in ast.walk(tree) if _is_attribute_of_name(node)}
    assert not {"time.sleep", "unittest.mock", "unittest.mock.patch"} & (asked | set(imported(path)))


def test_nothing_is_left_for_later() -> None:
    """No comment defers work."""
    assert [f"{name_of(path)}: {text}" for path in SOURCES for text in _comments(path) if _defers(text)] == []


def test_no_function_is_a_stub() -> None:
    """A body of nothing but `pass` or `...` stands only in a protocol."""
    assert [f"{name_of(path)}: {name}" for path in SOURCES for name in _stubs(ast.parse(path.read_text()))] == []


def test_the_package_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()


def test_every_dependency_has_its_reason() -> None:
    """The README's table of dependencies names each one that the package declares, and no other."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    table = (ROOT / "README.md").read_text().partition("## Dependencies")[2].partition("\n## ")[0]
    named = set(re.findall(r"^\| `([^`]+)` \| \S", table, re.MULTILINE))
    assert named == {re.split(r"[<>=]", line)[0] for line in declared}


def _roots(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


def _is_attribute_of_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)


def _comments(path: Path) -> Iterator[str]:
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    yield from (token.string for token in tokens if token.type == tokenize.COMMENT)


def _defers(comment: str) -> bool:
    return bool(re.search(r"\b(TODO|FIXME|XXX|HACK)\b", comment))


def _stubs(tree: ast.Module) -> Iterator[str]:
    protocols = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and _is_protocol(node)]
    excused = {child for protocol in protocols for child in ast.walk(protocol)}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node not in excused:
            body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
            if all(isinstance(line, ast.Pass) or ast.unparse(line) == "..." for line in body):
                yield node.name


def _is_protocol(node: ast.ClassDef) -> bool:
    return any(ast.unparse(base).startswith("Protocol") for base in node.bases)
