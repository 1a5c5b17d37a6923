"""Each benchmark ends in one line of JSON, which other programs read."""

import ast
import importlib.util
import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
# They make what the others read, and measure nothing.
MAKERS = {"prepare", "texts"}
SCRIPTS = sorted(
    path
    for path in BENCHMARKS.glob("*.py")
    if '__name__ == "__main__"' in path.read_text() and path.stem not in MAKERS
)


def calls(tree, name):
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == name
    ]


def function_of(tree, node):
    return next(
        function
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        and function.lineno <= node.lineno <= (function.end_lineno or 0)
    )


def test_there_are_benchmarks():
    assert {"read", "sae", "store", "transport", "probe"} <= {path.stem for path in SCRIPTS}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_benchmark_tells_its_figures_once_and_prints_nothing_after_them(path):
    tree = ast.parse(path.read_text())

    (told,) = calls(tree, "tell")
    for printed in calls(tree, "print"):
        assert "json.dumps" not in ast.unparse(printed)
        to_stdout = not any(keyword.arg == "file" for keyword in printed.keywords)
        same_function = function_of(tree, printed) is function_of(tree, told)
        assert not (to_stdout and same_function and printed.lineno > told.lineno)


def test_figures_are_told_in_one_line(capsys):
    spec = importlib.util.spec_from_file_location("measuring", BENCHMARKS / "measuring.py")
    measuring = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(measuring)
    figures = {"speedup": 2.5, "of each": {"a": [1, 2], "b": "two\nlines"}}

    measuring.tell(figures)

    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == figures
