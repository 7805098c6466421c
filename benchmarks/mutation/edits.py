"""Small wrong edits of a Python file: where each stands, what it puts there, and of what kind it is."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

COMPARISONS = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
}  # fmt: skip
OPERATORS = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.BitAnd: "|", ast.BitOr: "&"}
SYMMETRIC = ("min", "max", "hmac.compare_digest")  # swapping their arguments changes nothing
KINDS = ("dropped", "condition", "swapped", "result", "operator", "constant")


class Edit(NamedTuple):
    """Bytes `start` to `end` of a file become `text`."""

    kind: str
    line: int
    start: int
    end: int
    text: str

    def applied(self, source: bytes) -> bytes:
        return source[: self.start] + self.text.encode() + source[self.end :]

    def described(self, source: bytes) -> str:
        """`before -> after`, on one line: with the file's name, what identifies an edit as the file moves on."""
        before = " ".join(source[self.start : self.end].decode().split())
        return f"{before or '∅'} -> {' '.join(self.text.split()) or '∅'}"


def edits(path: Path) -> list[Edit]:
    """Every edit of the file that still parses, in order."""
    source = path.read_bytes()
    starts = [0]
    for line in source.split(b"\n"):
        starts.append(starts[-1] + len(line) + 1)

    def place(line: int, column: int) -> int:
        return starts[line - 1] + column

    found = []
    for node in _code(ast.parse(source)):
        for kind, (first, last), text in _of(node, source, place):
            edit = Edit(kind, node.lineno, first, last, text)
            try:
                compile(edit.applied(source), str(path), "exec")
            except SyntaxError:
                continue
            found.append(edit)
    return sorted(set(found), key=lambda edit: (edit.start, edit.end, edit.text))


def _code(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes inside functions, but for annotations, docstrings and the words of messages."""
    for function in ast.walk(tree):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            waiting: list[ast.AST] = [*function.body]
            while waiting:
                node = waiting.pop()
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.JoinedStr, ast.arguments)):
                    continue
                if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                    continue
                yield node
                skipped = {id(getattr(node, "annotation", None))}
                if isinstance(node, ast.Raise):
                    continue  # its message
                waiting += [child for child in ast.iter_child_nodes(node) if id(child) not in skipped]


def _of(node, source: bytes, place) -> Iterator[tuple[str, tuple[int, int], str]]:
    def span(part) -> tuple[int, int]:
        return place(part.lineno, part.col_offset), place(part.end_lineno, part.end_col_offset)

    def text(part) -> str:
        first, last = span(part)
        return source[first:last].decode()

    def between(left, right) -> tuple[int, int]:
        return span(left)[1], span(right)[0]

    if isinstance(node, (ast.AugAssign, ast.Raise)) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ):
        yield "dropped", span(node), "pass"
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], (ast.Attribute, ast.Subscript)):
        yield "dropped", span(node), "pass"
    if isinstance(node, ast.Return) and node.value is not None and not isinstance(node.value, ast.Constant):
        yield "result", span(node.value), "None"
    if isinstance(node, (ast.If, ast.While)):
        yield "condition", span(node.test), f"not ({text(node.test)})"
    if isinstance(node, ast.IfExp):
        yield "condition", span(node), f"({text(node.orelse)} if {text(node.test)} else {text(node.body)})"
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARISONS:
        yield "condition", between(node.left, node.comparators[0]), f" {COMPARISONS[type(node.ops[0])]} "
    if isinstance(node, ast.BoolOp):
        other = " or " if isinstance(node.op, ast.And) else " and "
        yield "condition", between(node.values[0], node.values[1]), other
    if (
        isinstance(node, ast.BinOp)
        and type(node.op) in OPERATORS
        and b"(" not in source[slice(*between(node.left, node.right))]
    ):
        yield "operator", between(node.left, node.right), f" {OPERATORS[type(node.op)]} "
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub, ast.Invert)):
        yield "operator", span(node), f"({text(node.operand)})"
    if isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
        yield "constant", span(node), str(not node.value if isinstance(node.value, bool) else node.value + 1)
    symmetric = isinstance(node, ast.Call) and text(node.func) in SYMMETRIC
    if (
        isinstance(node, ast.Call)
        and not symmetric
        and len(node.args) > 1
        and not any(isinstance(a, ast.Starred) for a in node.args[:2])
    ):
        first, second = node.args[:2]
        if text(first) != text(second):
            joined = source[slice(*between(first, second))].decode()
            yield "swapped", (span(first)[0], span(second)[1]), text(second) + joined + text(first)
