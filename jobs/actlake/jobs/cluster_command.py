"""``actlake cluster``: start a Ray cluster by hand that only its owner can use."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from actlake.jobs.saying import say
from actlake.platform.cluster import starting

_EXAMPLES = """examples:
  actlake cluster head                          # on the first machine
  actlake cluster node HEAD:6379                # on each other one, with the same token file
  eval "$(actlake cluster env)"                 # in a shell that submits jobs
  actlake cluster head -- --num-cpus=16 --temp-dir=/scratch/ray
  actlake cluster head --show                   # what it would run

Clusters of AWS and Kubernetes: examples/cluster/ in the repository; docs/cluster.md says what Ray
itself exposes. `ray stop` ends Ray on a machine."""


def main(arguments: Sequence[str]) -> int:
    """Run the command; its exit status."""
    options, more = _read(arguments)
    token = starting.token_file(Path(options.token_file).expanduser())
    if options.word == "env":
        for name, value in starting.variables(token).items():
            say(f"export {name}={shlex.quote(value)}")
        return 0
    is_head = options.word == "head"
    words = starting.head_words(more) if is_head else starting.node_words(options.address, more)
    if options.show:
        named = [
            f"{name}={shlex.quote(value)}" for name, value in starting.variables(token).items()
        ]
        say(" ".join([*named, shlex.join(words)]))
        return 0
    if not is_head:
        starting.check_head_answers(options.address)
    starting.check_ports_are_free(words)
    status = starting.run(words, token)
    if status == 0:
        say(_next_of_head(words, token) if is_head else _NEXT_OF_NODE)
    return status


def _read(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options, and what stands behind ``--``."""
    ours, more = list(arguments), []
    if "--" in ours:
        at = ours.index("--")
        ours, more = ours[:at], ours[at + 1 :]
    parser = argparse.ArgumentParser(
        prog="actlake cluster",
        description="Start Ray on this machine, as a head or as a node, with token authentication "
        "on and the dashboard on loopback. Options of `ray start` may follow behind `--`.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words = parser.add_subparsers(dest="word", required=True, metavar="head | node | env")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--token-file",
        default="~/.config/actlake/ray_token",
        help="file with the cluster's token, made if there is none (%(default)s)",
    )
    starts = argparse.ArgumentParser(add_help=False)
    starts.add_argument("--show", action="store_true", help="print the command and do nothing")
    words.add_parser("head", parents=[common, starts], help="make this machine the head")
    node = words.add_parser("node", parents=[common, starts], help="join a cluster")
    node.add_argument("address", help="HOST:PORT of the head, such as 10.0.0.5:6379")
    words.add_parser("env", parents=[common], help="print what a shell needs to use the cluster")
    return parser.parse_args(ours), more


def _next_of_head(words: Sequence[str], token: Path) -> str:
    return _NEXT_OF_HEAD.format(
        token=token,
        port=starting.value_of("--port", words),
        dashboard=starting.value_of("--dashboard-port", words),
    )


_NEXT_OF_HEAD = """
The token is in {token}: whoever has it can run programs here. Copy it to the same place on every
other machine (scp, not mail), and there run

  actlake cluster node THIS_MACHINE:{port}

In a shell that submits jobs:
  eval "$(actlake cluster env)"; actlake doctor --address http://127.0.0.1:{dashboard}
From elsewhere, reach the dashboard through
  ssh -L {dashboard}:127.0.0.1:{dashboard} THIS_MACHINE"""

_NEXT_OF_NODE = (
    "\nThis machine has joined. `actlake doctor --address HEAD:PORT` looks at all nodes."
)
