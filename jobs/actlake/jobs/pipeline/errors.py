"""What `actlake run` refuses, on one page.

PipelineError               something about a pipeline         (ActlakeError)
├── InvalidPipeline         sizes, names or results that cannot be (ValueError)
└── InvalidGraph            steps that wait for each other     (ValueError)
"""

from actlake.storage import ActlakeError


class PipelineError(ActlakeError):
    """Something about a pipeline."""


class InvalidPipeline(PipelineError, ValueError):
    """A pipeline cannot have these steps or sizes."""


class InvalidGraph(PipelineError, ValueError):
    """Steps wait for each other, or for one that is not there."""
