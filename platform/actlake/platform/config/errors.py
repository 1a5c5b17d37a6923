"""What is wrong with a configuration."""

from actlake.storage.errors import ActlakeError


class ConfigError(ActlakeError, ValueError):
    """A configuration cannot be used; the message names every key that is wrong, and why."""
