"""The loop: one stream of rows, every SAE learns from each batch, and the state is written down.

One process runs `Training.run`, or all processes of a data-parallel group do, each with its share
of every batch. Weights, counters and decisions are the same on all of them; rank 0 writes.

Killed at any step, the same call goes on from the last checkpoint as if nothing had happened:
which rows come is a function of the step, and nothing else is drawn at random.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actlake.jobs.chosen_rows import ChosenRows
from actlake.jobs.sae import means as named
from actlake.jobs.sae.checkpoint import Checkpoints, State
from actlake.jobs.sae.communicator import Communicator
from actlake.jobs.sae.config import SAEConfig, SAESpec
from actlake.jobs.sae.data import (
    Feeder,
    SiteFacts,
    examples,
    held_out_batches,
    scaling_of,
    site_facts,
    training_batches,
)
from actlake.jobs.sae.data_parallel import communicator
from actlake.jobs.sae.errors import NonFiniteLoss
from actlake.jobs.sae.evaluation import evaluate_rows
from actlake.jobs.sae.publish import recalibrate
from actlake.jobs.sae.trainable import TrainableSAE, build_sae
from actlake.jobs.sae.trainee import Ending, StepOptions, Trainee
from actlake.platform.cluster.process_group import Member
from actlake.platform.torch_batches import TorchBatch, TorchBatches
from actlake.platform.tracking import TrackedRun
from actlake.storage import ActivationStore, Site
from actlake.storage.reading.batches import Batches

logger = logging.getLogger(__name__)
CALIBRATION_ROWS = 16_384
"""Training rows from which thresholds are read off."""
CALIBRATION_BLOCK = 4096
"""Rows at once: each block costs a pass over a histogram of millions of bins."""

Trackers = Mapping[str, TrackedRun]
"""By name of the SAE; empty on ranks that write nothing."""


@dataclass(frozen=True)
class Outcome:
    """How a training ended, or where it was stopped."""

    step: int
    steps: int
    endings: Mapping[str, Ending]
    """SAEs that ended before the last step."""

    @property
    def complete(self) -> bool:
        """Nothing is left to learn."""
        return self.step == self.steps


class Waiting:
    """Seconds that the loop has waited for rows and for the other workers, of all that it took."""

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        self.begin()

    def next(self, stream: TorchBatches) -> TorchBatch:
        """The next batch."""
        asked = time.perf_counter()
        batch = next(stream)
        self._waited += time.perf_counter() - asked
        self._steps += 1
        return batch

    def take(self, batch_rows: int) -> dict[str, float]:
        """Speed and shares of waiting since the last call."""
        seconds = max(time.perf_counter() - self._began, 1e-9)
        found = {
            named.SPEED: self._steps * batch_rows / seconds,
            named.WAITING: self._waited / seconds,
        }
        if self._comm.size > 1:
            found[named.EXCHANGING] = (self._comm.waited_s - self._exchanged) / seconds
        self.begin()
        return found

    def begin(self) -> None:
        """Count from now on."""
        self._waited, self._steps = 0.0, 0
        self._began, self._exchanged = time.perf_counter(), self._comm.waited_s


class Training:
    """Some SAEs on one stream.

    Parameters
    ----------
    store, config
        What is read, and how.
    specs
        The SAEs, with names.
    steps
        Batches in all.
    folder
        Of the checkpoints.
    identity
        What decides the result; written into checkpoints.
    member
        This process.
    device
        Where it computes.
    share
        Whether the members share the rows of each batch; else each works alone.
    chosen
        The rows that are trained and tested on; None: all.
    """

    def __init__(
        self,
        store: ActivationStore,
        config: SAEConfig,
        specs: Sequence[SAESpec],
        *,
        steps: int,
        folder: Path,
        identity: Mapping[str, Any],
        member: Member,
        device: torch.device,
        share: bool,
        chosen: ChosenRows | None = None,
    ) -> None:
        self._store, self._config, self._specs = store, config, specs
        self._chosen = chosen
        self._steps, self._identity = steps, identity
        self._member, self._device = member, device
        self._comm: Communicator = communicator(member.size if share else 1)
        self._checkpoints = Checkpoints(folder, keep=config.checkpoint.keep)
        self._state = self._checkpoints.load()
        readers = self._state.readers if self._state else {}
        self._stream = training_batches(
            store, specs, config, state=readers.get("training"),
            rank=self._comm.rank, world_size=self._comm.size, chosen=chosen,
        )  # fmt: skip
        self._held_out_state: Mapping[str, Any] | None = readers.get("held_out")
        if self._held_out_state is None:
            self._held_out_state = self._held_out().state_dict()
        self.facts = site_facts(self._stream, normalise=config.normalise, chosen=chosen)
        self._feeder = Feeder({site: known.scale for site, known in self.facts.items()})
        self.trainees = [self._make(spec) for spec in specs]
        self._check_every = 1 if device.type == "cpu" else config.log_every

    @property
    def step(self) -> int:
        """The step that `run` begins with."""
        return self._state.step if self._state else 0

    @property
    def writes(self) -> bool:
        """Whether this process writes files."""
        return self._comm.rank == 0

    def run(self, trackers: Trackers) -> Outcome:
        """Train from the last checkpoint to the end, or until the member is asked to stop.

        Raises
        ------
        NonFiniteLoss
            The loss of the last SAE that was still learning is not finite. What was trained
            until the last checkpoint stays.
        """
        step = self.step
        if step < self._steps and self._state:
            logger.info("Going on from step %s of %s", f"{step:,}", f"{self._steps:,}")
        if step < self._steps:
            with TorchBatches(self._stream, device=self._device) as stream:
                step = self._loop(step, stream, trackers)
        endings = {one.name: one.ending for one in self.trainees if one.ending is not None}
        return Outcome(step, self._steps, endings)

    def _loop(self, step: int, stream: TorchBatches, trackers: Trackers) -> int:
        config, waiting = self._config, Waiting(self._comm)
        saved = step
        while step < self._steps and (active := [one for one in self.trainees if one.active]):
            if self._stop_asked():
                break
            batch = waiting.next(stream)
            fed = self._feeder(batch, [one.spec for one in active])
            for trainee, example in zip(active, fed, strict=True):
                trainee.step(example, step, self._comm)
            step += 1
            last = step == self._steps
            if step % self._check_every == 0:
                self._check_finite(saved)
            if step % config.log_every == 0 or last:
                self._check_finite(saved)
                self._log(step, waiting.take(config.batch_rows), trackers)
            if config.evaluation.every_steps and step % config.evaluation.every_steps == 0:
                self._check_finite(saved)
                self._evaluate(step, trackers)
                waiting.begin()
            if step % config.checkpoint.every_steps == 0 or last:
                self._check_finite(saved)
                self._save(step, stream)
                saved = step
                waiting.begin()
        self._check_finite(saved)
        if not any(one.active for one in self.trainees):
            step = self._steps  # nothing more would change
        if step != saved:
            self._save(step, stream)
        return step

    def _stop_asked(self) -> bool:
        """Whether any worker was asked to stop: all see it at the same step."""
        asked = self._member.stop.is_set()
        if self._comm.size == 1:
            return asked
        return bool(self._comm.sum(torch.tensor(float(asked), device=self._device)) > 0)

    def _check_finite(self, saved: int) -> None:
        """End those whose loss is not finite, with the weights of the last checkpoint."""
        for trainee in self.trainees:
            bad = trainee.first_bad_step() if trainee.active else None
            if bad is None:
                continue
            self._restore(trainee, saved)
            words = (
                f"the loss of {trainee.name} is not finite at step {bad + 1:,} of {self._steps:,}"
            )
            trainee.ending = Ending(bad + 1, failed=True, words=words)
            others = [one for one in self.trainees if one.active]
            logger.error("%s", f"{words[0].upper()}{words[1:]}; {len(others)} others go on")
            if not others and not any(
                one.ending is not None and not one.ending.failed for one in self.trainees
            ):
                raise not_finite([words], self._checkpoints)

    def _restore(self, trainee: Trainee, step: int) -> None:
        if step == 0:
            fresh = self._make(trainee.spec, resume=False)
            trainee.load(fresh.tensors(), fresh.facts())
            return
        state = self._checkpoints.load()
        assert state is not None
        trainee.load(self._checkpoints.tensors(state.step, trainee.name), state.facts[trainee.name])

    def _log(self, step: int, speed: Mapping[str, float], trackers: Trackers) -> None:
        shown = {one.name: self._log_one(one, step, speed, trackers) for one in self.trainees}
        fvu = {name: number for name, number in shown.items() if number is not None}
        self._member.report({"step": step, "fvu": fvu, **speed})

    def _log_one(
        self,
        trainee: Trainee,
        step: int,
        speed: Mapping[str, float],
        trackers: Trackers,
    ) -> float | None:
        """Its FVU, where there is something to log."""
        numbers = trainee.logged(step)
        if numbers and self.writes:
            trackers[trainee.name].log({**numbers, **speed}, step=step)
        return numbers.get(named.FVU)

    def _evaluate(self, step: int, trackers: Trackers) -> None:
        """Rank 0 tests, and all learn of the FVU: early stops must be the same everywhere."""
        for trainee in [one for one in self.trainees if one.active]:
            fvu = torch.zeros((), dtype=torch.float64, device=self._device)
            if self.writes:
                with self.calibrated(trainee) as model:
                    sae = model.trained(scaling_of(trainee.spec, self.facts))
                scores = evaluate_rows(sae, self.held_out_rows(trainee.spec))
                trackers[trainee.name].log(prefixed(scores.as_metrics()), step=step)
                fvu += scores.fvu
            self._member.report({"step": step})
            trainee.judge(float(self._comm.sum(fvu)), step)
            if trainee.ending is not None:
                logger.info("%s ends at step %d: %s", trainee.name, step, trainee.ending.words)
                self._log_one(trainee, step, {}, trackers)

    def _save(self, step: int, stream: TorchBatches) -> None:
        if self.writes:
            state = State(
                step=step,
                readers={"training": stream.state_dict(), "held_out": self._held_out_state},
                facts={one.name: one.facts() for one in self.trainees},
                identity=self._identity,
            )
            self._checkpoints.save(state, {one.name: one.tensors() for one in self.trainees})
        if self._comm.size > 1:  # nobody goes on before it is written
            self._comm.sum(torch.zeros((), device=self._device))

    def _make(self, spec: SAESpec, *, resume: bool = True) -> Trainee:
        options = StepOptions(
            steps=self._steps,
            batch_rows=self._config.batch_rows,
            micro_batches=self._config.micro_batches,
            autocast=self._config.autocast == "bfloat16",
        )
        trainee = Trainee(
            spec,
            build(spec, self.facts, self._device),
            options,
            variance=variance_of(spec, self.facts),
            device=self._device,
        )
        if resume and self._state:
            name = str(spec.name)
            trainee.load(self._checkpoints.tensors(self._state.step, name), self._state.facts[name])
        return trainee

    def _held_out(self) -> Batches:
        return held_out_batches(
            self._store,
            self._specs,
            self._config,
            state=self._held_out_state,
            chosen=self._chosen,
        )

    def held_out_rows(self, spec: SAESpec) -> Iterator[Tensor | tuple[Tensor, Tensor]]:
        """What an SAE is tested on, unscaled; the same rows at every test."""
        rows = self._config.evaluation.rows
        for read, target in examples(self._held_out, spec, rows=rows, device=self._device):
            yield read if target is None else (read, target)

    @contextmanager
    def calibrated(self, trainee: Trainee) -> Iterator[TrainableSAE]:
        """The model with its threshold, where it has one, read off training rows for a moment.

        The threshold of the training follows the batches slowly, from 0, and goes on doing so
        afterwards: when tests are made changes nothing in the training.
        """
        model = trainee.model
        before = {name: part.clone() for name, part in model.named_buffers()}
        recalibrate(model, self._calibration_rows(trainee.spec))
        try:
            yield model
        finally:
            for name, part in model.named_buffers():
                part.copy_(before[name])

    def _calibration_rows(self, spec: SAESpec) -> Iterator[Tensor]:
        """The first rows of the training's order, scaled, in blocks of thousands."""
        beginning = {**self._stream.state_dict(), "epoch": 0, "step": 0}
        batches = partial(
            training_batches,
            self._store,
            self._specs,
            self._config,
            state=beginning,
            chosen=self._chosen,
        )
        rows = min(CALIBRATION_ROWS, self._stream.num_rows)
        block: list[Tensor] = []
        for read, _ in examples(
            batches, spec, rows=rows, device=self._device, scales=self._feeder.scales
        ):
            block.append(read)
            if sum(map(len, block)) >= CALIBRATION_BLOCK:
                yield torch.cat(block)
                block = []
        if block:
            yield torch.cat(block)


def prefixed(scores: Mapping[str, float]) -> dict[str, float]:
    """Scores of held-out rows as they are logged."""
    return {f"{named.HELD_OUT}/{name}": value for name, value in scores.items()}


def build(spec: SAESpec, facts: Mapping[Site, SiteFacts], device: torch.device) -> TrainableSAE:
    """The SAE of a spec with its first weights, for rows of these sites."""
    dim = len(facts[spec.inputs[0]].mean)
    model = build_sae(
        spec.architecture,
        spec.options,
        d_in=dim,
        d_sae=spec.d_sae,
        d_out=None if spec.target is None else dim,
        num_sites=len(spec.inputs),
        seed=spec.seed,
        device=device,
    )
    if spec.start_at_mean:
        mean = np.concatenate([facts[site].mean * facts[site].scale for site in _written(spec)])
        with torch.no_grad():
            model.weights.get_parameter("b_dec").copy_(torch.from_numpy(mean))
    return model


def variance_of(spec: SAESpec, facts: Mapping[Site, SiteFacts]) -> Tensor:
    """(S,) float64, of each site that the SAE reconstructs, scaled: summed over dimensions."""
    return torch.tensor(
        [facts[site].variance * facts[site].scale ** 2 for site in _written(spec)],
        dtype=torch.float64,
    )


def _written(spec: SAESpec) -> tuple[Site, ...]:
    """The sites that it reconstructs or predicts."""
    return spec.inputs if spec.target is None else (spec.target,)


def not_finite(words: Sequence[str], checkpoints: Checkpoints) -> NonFiniteLoss:
    """The error for SAEs whose training failed."""
    steps = checkpoints.steps()
    kept = (
        f"the last good state is in {checkpoints.folder}/step-{steps[-1]:09d}"
        if steps
        else "there was no checkpoint yet"
    )
    first = "; ".join(words)
    return NonFiniteLoss(
        f"{first[0].upper()}{first[1:]}\n{kept}\n"
        "hint: a lower learning_rate, a longer warm_up or a smaller coefficient may help, in "
        "another `out`; or autocast: none"
    )
