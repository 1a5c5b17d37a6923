"""Run the steps of a pipeline: each in a process of its own, with a log of its own.

Whether a step is done is asked of its result, before it would be started and never of a file
of the pipeline's: a pipeline that was stopped or killed is resumed by running it again.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal, TypeAlias

from actlake.jobs.pipeline.graph import Step
from actlake.jobs.steps import step_kind
from actlake.platform.config.yaml_text import yaml_text
from actlake.storage import ActlakeError

logger = logging.getLogger(__name__)

Outcome: TypeAlias = Literal["was done", "done", "failed", "blocked", "stopped"]
Tell: TypeAlias = Callable[[str], None]

_POLL_S = 0.2
_TAIL_LINES = 8


@dataclass(slots=True)
class Running:
    """A step's process."""

    step: Step
    process: "subprocess.Popen[bytes]"
    log: Path
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self.began


@dataclass(slots=True)
class PipelineRun:
    """One run over the steps; `run` gives what became of each."""

    steps: Sequence[Step]
    parallel: int
    logs: Path
    tell: Tell
    start: "Callable[[Step, Path], Running]" = field(default_factory=lambda: start)
    """Starts a step's process, given the folder of logs."""
    is_done: Callable[[Step], bool] = field(default_factory=lambda: is_done)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    running: dict[str, Running] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> Mapping[str, Outcome]:
        """Run what is to be run; every step has an outcome when this returns."""
        with _passing_on_signals(self):
            while len(self.outcomes) < len(self.steps):
                self._start_ready()
                self._collect()
                if self.running:
                    time.sleep(_POLL_S)
        return self.outcomes

    def signal(self, number: int) -> None:
        """Hand a signal to every step that runs, and start no more."""
        self.stop.set()
        for one in self.running.values():
            one.process.send_signal(number)

    def _start_ready(self) -> None:
        for step in self.steps:
            if step.name in self.outcomes or step.name in self.running:
                continue
            before = [self.outcomes.get(name) for name in step.waits_for]
            if "failed" in before or "blocked" in before:
                self._end(step, "blocked", f"not run: {_unlucky(step, self.outcomes)} failed")
            elif self.stop.is_set():
                self._end(step, "stopped", "not begun")
            elif len(self.running) < self.parallel and all(
                outcome in ("done", "was done") for outcome in before
            ):
                # Asked once, when there is a place for it: it may read a large ledger.
                if self.is_done(step):
                    self._end(step, "was done", f"done already: {step.output}")
                else:
                    self.running[step.name] = self.start(step, self.logs)
                    self.tell(f"{step.name}: started, log in {self.logs / step.name}.log")

    def _collect(self) -> None:
        for one in list(self.running.values()):
            status = one.process.poll()
            if status is None:
                continue
            del self.running[one.step.name]
            after = f"after {one.seconds:,.0f} s"
            if status == 0:
                self._end(one.step, "done", f"done {after}: {one.step.output}")
            elif self.stop.is_set():
                self._end(one.step, "stopped", f"stopped {after} (status {status})")
            else:
                tail = "\n".join(f"    {line}" for line in _last_lines(one.log))
                self._end(one.step, "failed", f"failed {after} (status {status})\n{tail}")

    def _end(self, step: Step, outcome: Outcome, words: str) -> None:
        self.outcomes[step.name] = outcome
        self.tell(f"{step.name}: {words}")


def is_done(step: Step) -> bool:
    """Whether a step's result is complete; a result that cannot be read is the step's to refuse."""
    try:
        return step_kind(step.command).is_done(step.config)
    except (ActlakeError, OSError) as error:
        logger.info("%s: its result cannot be read: %s", step.name, error)
        return False


def start(step: Step, logs: Path) -> Running:
    """Start a step's command; its configuration lies beside its log."""
    logs.mkdir(parents=True, exist_ok=True)
    config = logs / f"{step.name}.yaml"
    config.write_text(
        "".join(f"{key}: {yaml_text(value)}\n" for key, value in step.config.items()),
        encoding="utf-8",
    )
    log = logs / f"{step.name}.log"
    with log.open("ab") as output:
        output.write(f"\n--- {time.strftime('%Y-%m-%d %H:%M:%S')} {step.command}\n".encode())
        output.flush()
        process = subprocess.Popen(
            [
                *(sys.executable, "-u", "-m", "actlake.jobs.pipeline.step_process"),
                *(str(os.getpid()), step.command, "--config", str(config)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A group of its own: a terminal's Ctrl-C comes once, from us, and not twice.
            start_new_session=True,
        )
    return Running(step, process, log)


@contextmanager
def _passing_on_signals(run: PipelineRun) -> Iterator[None]:
    def pass_on(number: int, frame: FrameType | None) -> None:
        again = run.stop.is_set() and number == signal.SIGINT
        words = "once more" if again else "passed on to the running steps, waiting for them"
        run.tell(f"{signal.Signals(number).name}: {words}")
        run.signal(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {
        number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _unlucky(step: Step, outcomes: Mapping[str, Outcome]) -> str:
    return ", ".join(n for n in step.waits_for if outcomes.get(n) in ("failed", "blocked"))


def _last_lines(log: Path) -> list[str]:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 8192), os.SEEK_SET)
        text = file.read().decode(errors="replace")
    return text.splitlines()[-_TAIL_LINES:]
