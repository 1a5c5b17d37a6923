"""Keep credentials out of what is written down: run records, trackers, logs.

Two places are covered: values whose key names a credential (``api_key``, ``client_secret``,
``password``, …) and the ``user:password@`` of a URL. Words such as ``max_tokens`` or
``pad_token`` are left alone.
"""

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "<hidden>"

_SECRET_KEY = re.compile(
    r"(^|[_\-.])(secret|password|passwd|passphrase|credentials?)$"
    r"|(^|[_\-.])(access|api|secret|private|account|storage)[_\-]?key$"
    r"|(^|[_\-.])(access|auth|session|bearer|refresh|id|api|hf|hub|security)[_\-]?token$"
    r"|^(key|token|authorization)$",
    re.IGNORECASE,
)
_USER_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")


def without_secrets(value: Any) -> Any:
    """A copy of a JSON-able `value` with every credential replaced by ``<hidden>``."""
    if isinstance(value, Mapping):
        return {
            key: HIDDEN if _names_a_secret(key, item) else without_secrets(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in value]
    if isinstance(value, str):
        return _USER_IN_URL.sub(f"{HIDDEN}@", value)
    return value


def _names_a_secret(key: Any, value: Any) -> bool:
    return isinstance(value, str) and value != "" and bool(_SECRET_KEY.search(str(key)))
