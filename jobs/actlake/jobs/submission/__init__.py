"""Run a command on a cluster: `actlake submit`, and `actlake jobs` to look after it."""
