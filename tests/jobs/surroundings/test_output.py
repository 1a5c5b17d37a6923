"""What a command says arrives whole on any terminal: in its encoding, and in its width."""

import ast
import io
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from actlake.jobs import saying
from actlake.jobs.cli import COMMANDS, run

ASCII = {"PYTHONIOENCODING": "ascii"}
LOCALES = {
    "ascii": ASCII,
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "the C locale": {
        "LC_ALL": "C", "LANG": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0",
    },
}  # fmt: skip


@pytest.mark.parametrize("locale", LOCALES)
def test_info_is_readable_in_every_locale(locale, command, small_store):
    ended = command("info", small_store, **LOCALES[locale])

    assert ended.returncode == 0, ended.stderr
    assert "float32 " in ended.stdout
    assert "resid_post.2" in ended.stdout


def test_a_whole_job_runs_in_the_c_locale(job, command, tmp_path):
    ended = command(
        *job, "--out", tmp_path / "out", "--tracking.wandb", "disabled", **LOCALES["the C locale"]
    )

    assert ended.returncode == 0, ended.stderr
    assert "The report is" in ended.stdout


class Terminal(io.TextIOWrapper):
    """An output of one encoding, strict as Python makes them."""

    def __init__(self, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, errors="strict", write_through=True)

    def shown(self) -> str:
        buffer = self.buffer
        assert isinstance(buffer, io.BytesIO)
        return buffer.getvalue().decode(self.encoding)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_is_shown_in_every_encoding(name, encoding, monkeypatch):
    terminal = Terminal(encoding)
    monkeypatch.setattr(sys, "stdout", terminal)

    with pytest.raises(SystemExit) as ended:
        run([name, "--help"])

    assert ended.value.code in (0, None)
    assert f"actlake {name}" in terminal.shown()


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("layers 0–9 × 64 → R² …", "layers 0-9 x 64 -> R2 ..."),
        ("α 0.1", "alpha 0.1"),
        ("██ 3", "## 3"),
        ("a\udcffb.txt", "a\\udcffb.txt"),  # a file name that is not in the locale
        ("Käse", "K\\xe4se"),
    ],
)
def test_what_an_encoding_has_not_is_put_plainly(written, shown, monkeypatch):
    terminal = Terminal("ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    saying.show_what_can_be_shown()

    saying.say(written)

    assert terminal.shown().rstrip("\n") == shown


def test_what_an_encoding_has_is_left_as_it_is(monkeypatch):
    terminal = Terminal("latin-1")
    monkeypatch.setattr(sys, "stdout", terminal)
    saying.show_what_can_be_shown()

    saying.say("Käse × 2")

    assert terminal.shown() == "Käse × 2\n"


@pytest.mark.parametrize("columns", ["40", "20"])
def test_info_cuts_off_no_name_and_no_number_in_a_narrow_terminal(
    columns, small_store, monkeypatch, capsys
):
    monkeypatch.setenv("COLUMNS", columns)

    assert run(["info", str(small_store)]) == 0

    out = capsys.readouterr().out
    assert "…" not in out
    for words in ("resid_post.0", "resid_post.2", "5 of 5 units committed", "33.3 kB"):
        assert words in out


def test_help_fits_into_forty_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")

    with pytest.raises(SystemExit):
        run(["harvest", "--help"])

    about, _, _ = capsys.readouterr().out.partition("options:")
    _, *prose = about.splitlines()  # the first line is to be copied
    assert max(map(len, prose)) <= 40


@pytest.mark.parametrize("width", [30, 120])
def test_a_table_is_whole_in_any_width(width):
    table = Table(box=None)
    for header in ("job", "result"):
        table.add_column(header)
    table.add_row("actlake-harvest-0123456789", "s3://a-bucket/with/a/long/name")
    out = io.StringIO()

    saying.say_table(table, Console(file=out, width=width))

    assert "actlake-harvest-0123456789" in out.getvalue()
    assert "s3://a-bucket/with/a/long/name" in out.getvalue()


def test_every_text_file_is_written_and_read_in_one_encoding_whatever_the_locale_is():
    """`read_text` and its like go by the locale where they are not told."""
    calls = [
        f"{path.name}:{call.lineno}"
        for package in ("storage", "platform", "jobs")
        for path in (Path(__file__).parents[3] / package).rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and _goes_by_the_locale(call)
    ]

    assert calls == []


def _goes_by_the_locale(call: ast.Call) -> bool:
    named = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if named.get("text") == "True":  # of a subprocess
        return True
    deed = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    if deed == "read_text" and call.args:  # its first argument is the encoding
        return False
    return deed in ("read_text", "write_text") and "encoding" not in named
