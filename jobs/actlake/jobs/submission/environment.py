"""Which environment variables a job is given, and which it must not be given.

A job's variables stand in the dashboard, in ``ray job list`` and in Ray's logs. So a variable
that looks like a credential is refused by name; nothing is passed that was not asked for, and
no value is ever printed.
"""

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from actlake.jobs.submission.errors import InvalidSubmission, SecretExposed
from actlake.platform.redact import without_secrets

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(
    r"(^|_)(KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|AUTH|COOKIE)(_|$)"
    r"|(KEY|TOKEN|SECRET|PASSWORD)$",
    re.IGNORECASE,
)
# Credentials by their own shape, whatever the variable is called.
_SHAPE = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\b(AKIA|ASIA)[A-Z0-9]{16}\b|\bgh[pousr]_[A-Za-z0-9]{20,}"
    r"|\bsk-[A-Za-z0-9_-]{20,}|\bwandb_v\d+_\w{20,}|-----BEGIN [A-Z ]*PRIVATE KEY|://[^/@\s]+:[^/@\s]+@"
)
# Of W&B's older keys, and of git's commits: which it is, only the name says.
_FORTY_HEX = re.compile(r"\b[0-9a-f]{40}\b")
_COMMIT = re.compile(r"(REVISION|COMMIT|SHA1?|HASH)$", re.IGNORECASE)
# Not credentials, whatever they sound like.
_HARMLESS = frozenset({"TOKENIZERS_PARALLELISM", "AWS_SHARED_CREDENTIALS_FILE"})

_HINT = (
    "hint: workers have the environment in which their node was started: export it there before "
    "`ray start` (in Kubernetes, a Secret as the container's environment), or use a file or a "
    "role of the machine (`wandb login`, `hf auth login`, ~/.aws). See docs/cluster.md"
)


def job_environment(
    asked: Iterable[str], *, here: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The variables of ``--env NAME`` (its value here) and ``--env NAME=VALUE``.

    Raises
    ------
    SecretExposed
        One looks like a credential, by its name or its value.
    InvalidSubmission
        A name cannot be one, or has no value here.
    """
    here = os.environ if here is None else here
    environment = {}
    for words in asked:
        name, equals, value = words.partition("=")
        if not _NAME.fullmatch(name):
            raise InvalidSubmission(
                f"--env {name!r} is not the name of a variable\n"
                "hint: --env NAME or --env NAME=VALUE"
            )
        if not equals and name not in here:
            raise InvalidSubmission(
                f"--env {name}: the variable is not set here\nhint: --env {name}=VALUE"
            )
        value = value if equals else here[name]
        if looks_secret(name, value):
            raise SecretExposed(
                f"--env {name} looks like a credential, and everybody who sees the cluster's "
                f"dashboard could read it\n{_HINT}"
            )
        environment[name] = value
    return environment


def looks_secret(name: str, value: str) -> bool:
    """Whether a variable seems to hold a credential."""
    named = bool(_SECRET.search(name)) and name not in _HARMLESS
    return named or _is_shaped(name, value)


def _is_shaped(name: str, value: str) -> bool:
    if _SHAPE.search(value):
        return True
    return bool(_FORTY_HEX.search(value)) and not _COMMIT.search(name)


def refuse_secrets(config: Any) -> None:
    """Refuse a configuration with credentials in it: the cluster keeps what is shipped.

    Raises
    ------
    SecretExposed
        Names the keys.
    """
    keys = sorted(_secret_keys(config, without_secrets(config), ""))
    if keys:
        raise SecretExposed(
            f"The configuration holds what looks like a credential: {', '.join(keys)}\n{_HINT}"
        )


def _secret_keys(given: Any, hidden: Any, key: str) -> set[str]:
    if isinstance(given, Mapping):
        inside = ((f"{key}.{name}" if key else str(name), given[name], hidden[name])
                  for name in given)  # fmt: skip
    elif isinstance(given, list | tuple):
        inside = ((f"{key}[{i}]", a, b) for i, (a, b) in enumerate(zip(given, hidden, strict=True)))
    else:
        shaped = isinstance(given, str) and _is_shaped(key, given)
        return {key} if given != hidden or shaped else set()
    return {
        found
        for name, a, b in inside
        for found in ({name} if _is_hidden(a, b) else _secret_keys(a, b, name))
    }


def _is_hidden(given: Any, hidden: Any) -> bool:
    return isinstance(given, str) and given != hidden
