"""Where ``actlake`` begins, and ``python -m actlake.jobs``, where the script is not on the path."""

import sys

from actlake.jobs.interrupted import ends_at_once


def main() -> None:
    """Run the command that the process was called with, and exit."""
    with ends_at_once():
        from actlake.jobs.cli import run
    raise SystemExit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
