"""Everything the transport job refuses, on one page.

    ActlakeError
    └── TransportError
        ├── InvalidTransport    a configuration that cannot be                     (ValueError)
        ├── InvalidPair         a pair of sites that cannot be                     (LookupError)
        ├── NotEnoughRows       a part of the rows that is needed is empty         (LookupError)
        ├── StoresDiffer        two stores do not hold the same tokens             (ValueError)
        ├── MomentsMismatch     moments of another store, sites or options         (ValueError)
        ├── InvalidRank         a rank below 0 or above the width                  (ValueError)
        └── OperatorNotFound    no such operator on disk, or a damaged one         (LookupError)

A message says what happened, what there is, and, after ``hint:``, what to do.
"""

from actlake.storage.errors import ActlakeError


class TransportError(ActlakeError):
    """Something about maps between layers."""


class InvalidTransport(TransportError, ValueError):
    """A field of `TransportConfig` has a value that cannot be."""


class InvalidPair(TransportError, LookupError):
    """A pair names a site that is not stored, or a target that the model does not have."""


class NotEnoughRows(TransportError, LookupError):
    """The rows to fit, validate or test on are none, or too few to say anything."""


class StoresDiffer(TransportError, ValueError):
    """Two stores were given, and row i is not the same token in both."""


class MomentsMismatch(TransportError, ValueError):
    """Moments on disk are of another store, other sites or other options."""


class InvalidRank(TransportError, ValueError):
    """A map of that rank does not exist."""


class OperatorNotFound(TransportError, LookupError):
    """There is no operator at that place, or it cannot be read."""
