"""What `actlake submit` refuses, on one page.

SubmissionError             something about a submission        (ActlakeError)
├── SecretExposed           a credential would be readable      (ValueError)
├── PathNotShared           a path that means another place there (ValueError)
└── InvalidSubmission       an id or a variable that cannot be  (ValueError)
"""

from actlake.storage import ActlakeError


class SubmissionError(ActlakeError):
    """Something about a submission."""


class SecretExposed(SubmissionError, ValueError):
    """A credential would stand where everybody who sees the dashboard can read it."""


class PathNotShared(SubmissionError, ValueError):
    """A path of the config would mean another place on the cluster."""


class InvalidSubmission(SubmissionError, ValueError):
    """An id, a variable or a time that cannot be."""
