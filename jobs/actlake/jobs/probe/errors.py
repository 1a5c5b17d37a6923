"""Everything the probe job refuses, on one page.

    ActlakeError
    └── ProbeError
        ├── InvalidProbe     a configuration that cannot be                         (ValueError)
        ├── InvalidLabels    labels that cannot be predicted: NaN, one class        (ValueError)
        ├── NotEnoughRows    a class or a part of the rows is empty, or too small   (LookupError)
        ├── LabelNotFound    no such column, of labels or documents                 (LookupError)
        └── ProbeNotFound    no such probe on disk, or a damaged one                (LookupError)

A message says what happened, what there is, and, after ``hint:``, what to do.
"""

from actlake.storage.errors import ActlakeError


class ProbeError(ActlakeError):
    """Something about probes."""


class InvalidProbe(ProbeError, ValueError):
    """A field of `ProbeConfig` has a value that cannot be."""


class InvalidLabels(ProbeError, ValueError):
    """Labels that no probe can be trained on: missing values, one class, a type that is none."""


class NotEnoughRows(ProbeError, LookupError):
    """The examples to fit, validate or test on, or those of a class, are none or too few."""


class LabelNotFound(ProbeError, LookupError):
    """There is no such column, neither of the attached labels nor of the documents."""


class ProbeNotFound(ProbeError, LookupError):
    """There is no probe at that place, or it cannot be read."""
