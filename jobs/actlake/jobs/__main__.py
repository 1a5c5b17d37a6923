"""``python -m actlake.jobs COMMAND``, where the ``actlake`` script is not on the path."""

from actlake.jobs.cli import main

main()
