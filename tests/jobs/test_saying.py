"""What a command says is printed as it is written."""

import io

from rich.console import Console

from actlake.jobs.saying import say


def test_brackets_and_colons_of_a_path_are_no_markup():
    out = io.StringIO()

    say("runs/[bold]x[/y]/:100:\nis there", Console(file=out, width=20, force_terminal=False))

    assert out.getvalue() == "runs/[bold]x[/y]/:100:\nis there\n"
