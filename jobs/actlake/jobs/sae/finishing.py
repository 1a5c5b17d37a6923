"""From a trained SAE to a result: threshold, files, tests, lineage, and what the report shows.

A folder ``out/NAME`` holds, when it is finished,

    cfg.json, sae_weights.safetensors   SAELens' inference form, scaling folded in
    run.json                            config, fingerprints, code, final numbers
    metrics.jsonl, summary.json, wandb/ what was logged

Finishing may be done again, after a kill, and then gives the same.
"""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actlake.jobs.massive_rows import massive_facts
from actlake.jobs.model_of_store import chain_of_store, head_of_store, model_of_store
from actlake.jobs.sae import means as named
from actlake.jobs.sae.config import SAESpec
from actlake.jobs.sae.contexts import LatentPage, choose_latents, latent_pages
from actlake.jobs.sae.data import scaling_of, sites_of
from actlake.jobs.sae.dead_latents import dead_name
from actlake.jobs.sae.evaluation import RowScores, evaluate_rows
from actlake.jobs.sae.in_model import ModelScores, evaluate_sites
from actlake.jobs.sae.opening import Opened
from actlake.jobs.sae.publish import publish
from actlake.jobs.sae.report import RunFacts, write_report
from actlake.jobs.sae.trained import CONFIG, WEIGHTS, TrainedSAE, read_sae
from actlake.jobs.sae.trainee import Trainee
from actlake.jobs.sae.training import Training, prefixed
from actlake.jobs.whole_contexts import contexts_of_split
from actlake.platform.computed_on import computed_on
from actlake.platform.config import to_dict
from actlake.platform.models.points import sae_lens_hook
from actlake.platform.runs import FILE, RunRecord, code_version
from actlake.platform.tracking import TrackedRun, Tracker, read_metrics
from actlake.storage import ActivationStore, Site
from actlake.storage.errors import ActlakeError
from actlake.storage.provenance import shortened

logger = logging.getLogger(__name__)
JOB = "sae"
_PARTIAL = ".publishing"
_UNEMBEDDED = ("resid_post", "resid_mid", "resid_pre", "attn_out", "mlp_out")
"""Points whose directions are of the residual stream, and have logits."""


def finish(
    opened: Opened, training: Training, trainee: Trainee, tracker: TrackedRun, record: RunRecord
) -> RunFacts:
    """Publish and test one SAE; what the report says of it.

    Of one whose training failed nothing is published.
    """
    folder = opened.out / trainee.name
    facts = _facts(opened, trainee, folder)
    if trainee.ending is not None and trainee.ending.failed:
        return facts
    with training.calibrated(trainee) as model:
        _publish(
            folder,
            lambda partial: publish(
                model,
                partial,
                scaling=scaling_of(trainee.spec, training.facts),
                metadata=lineage(opened, trainee),
            ),
        )
    sae = read_sae(str(folder)).to(opened.device)
    rows = evaluate_rows(sae, training.held_out_rows(trainee.spec))
    in_model = _in_model(opened, training, trainee.spec, sae)
    latents = _latents(opened, trainee.spec, sae, rows)
    metrics = prefixed(rows.as_metrics())
    for spliced, scores in in_model.items():
        # The only site of an SAE needs no name; those of a crosscoder do.
        place = f"in_model/{spliced}" if len(in_model) > 1 else "in_model"
        metrics |= {f"{place}/{name}": value for name, value in scores.as_metrics().items()}
    tracker.summary({**metrics, "state": facts.state})
    record.finish(metrics).save(folder)
    tracker.artifact(folder / WEIGHTS, kind="sae")
    logger.info("Wrote %s: FVU %.4f at L0 %.1f", folder, rows.fvu, rows.l0)
    return replace(facts, rows=rows, in_model=in_model, latents=latents)


def report(opened: Opened, facts: Sequence[RunFacts], tracker: Tracker) -> Path:
    """Write the page of all SAEs; its path."""
    store, config = opened.store, opened.config
    about = {
        "store": store.url,
        "model": str(store.provenance.model.get("name")),
        "rows": f"{opened.steps * config.batch_rows:,} of split {config.split}",
        "held out": f"{opened.held_out_rows:,} rows of split {config.evaluation.split}",
    }
    if opened.chosen is not None:
        about["rows where"] = str(opened.chosen)
    about["massive rows"] = massive_facts(
        store, opened.massive, sites_of(opened.specs),
        split=config.split, excluded=config.excluded,
    )  # fmt: skip
    title = "Sparse autoencoders" if len(facts) > 1 else f"SAE {facts[0].name}"
    return write_report(
        opened.out, title, facts,
        tracker=tracker, about=about, noted=opened.warnings, step=opened.steps,
    )  # fmt: skip


def record_of(opened: Opened, spec: SAESpec) -> RunRecord:
    """The record of one SAE's training, which begins now."""
    return RunRecord.start(
        JOB,
        {**to_dict(opened.config), "sae": to_dict(spec), "saes": [], "grid": {}},
        inputs=opened.inputs,
        seed=spec.seed,
        computed_on=computed_on_of(opened),
    )


def computed_on_of(opened: Opened) -> dict[str, Any]:
    """What this process computes on; nothing of a driver whose workers are on a cluster."""
    in_model = opened.config.evaluation.in_model
    dtype = model_of_store(opened.store, in_model.model).dtype.value if in_model else None
    device = None if opened.joins else opened.device
    return computed_on(device, threads=opened.threads, in_model_dtype=dtype)


def lineage(opened: Opened, trainee: Trainee) -> dict[str, Any]:
    """What an SAE's file says of its origin, with the keys that SAELens reads and our own."""
    store, source, spec = opened.store, opened.store.provenance, trainee.spec
    code = code_version()
    crosscoder = len(spec.inputs) > 1
    return {
        "model_name": source.model.get("name"),
        "model_revision": source.model.get("revision"),
        "hook_name": None if crosscoder else sae_lens_hook(spec.inputs[0]),
        "hook_name_out": None if spec.target is None else sae_lens_hook(spec.target),
        "hook_names": [sae_lens_hook(site) for site in spec.inputs] if crosscoder else None,
        "hf_hook_name": None if crosscoder else _module(spec.inputs[0]),
        "sites": list(map(str, spec.inputs)),
        "target": None if spec.target is None else str(spec.target),
        "context_size": store.schema.context_length,
        "exclude_special_tokens": not opened.config.excluded,
        "rows_where": opened.config.where,
        "store_fingerprint": store.fingerprint,
        "dead_after_rows": trainee.dead_after_rows,
        "rows_trained": _rows_trained(opened, trainee),
        "training": to_dict(spec),
        "actlake": {
            "version": code.actlake,
            "commit": code.commit,
            "dirty": code.dirty,
        },
    }


def _module(site: Site) -> str | None:
    """The module of a transformers model whose output it is, in most families."""
    return f"model.layers.{site.layer}" if site.point == "resid_post" else None


def _publish(folder: Path, write: Any) -> None:
    """Write the two files into a folder that is there; cfg.json last, for it completes them."""
    partial = folder / _PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    write(partial)
    for name in (WEIGHTS, CONFIG):
        (partial / name).replace(folder / name)
    shutil.rmtree(partial)


def _in_model(
    opened: Opened, training: Training, spec: SAESpec, sae: TrainedSAE
) -> Mapping[str, ModelScores]:
    """By the site that is replaced; empty where it is not asked for."""
    asked, store = opened.config.evaluation.in_model, opened.store
    if asked is None:
        return {}
    reads = [Site.parse(site) for site in spec.inputs]
    writes = None if spec.target is None else [spec.target]
    chain = chain_of_store(store, asked.model, spec.all_sites)
    contexts = contexts_of_split(
        store,
        opened.config.evaluation.split,
        asked.contexts,
        exclude=asked.exclude or ("nothing" if opened.config.excluded else "default"),
        chosen=opened.rows,
    )
    means = {site: torch.from_numpy(training.facts[site].mean) for site in writes or reads}
    return evaluate_sites(
        sae, chain, contexts, reads, writes, means=means if asked.mean else None,
        ablate=asked.ablate, device=opened.device,
    )  # fmt: skip


def _latents(
    opened: Opened, spec: SAESpec, sae: TrainedSAE, scores: RowScores
) -> Sequence[LatentPage]:
    """Pages of some latents; without promoted tokens where the model is not to be had."""
    report, store = opened.config.report, opened.store
    chosen = choose_latents(scores.density, report.latents)
    written = spec.target or spec.inputs[-1]
    head, directions = None, None
    if chosen and written.point in _UNEMBEDDED:
        in_model = opened.config.evaluation.in_model
        try:
            head = head_of_store(store, in_model.model if in_model else None)
            directions = sae.decoder if len(spec.inputs) == 1 else sae.decoder[:, -1]
        except (ActlakeError, OSError) as error:
            logger.warning("No promoted tokens in the report: %s", str(error).splitlines()[0])
    return latent_pages(
        sae,
        store,
        list(spec.inputs),
        chosen,
        split=opened.config.evaluation.split,
        rows=report.rows,
        contexts=report.contexts,
        directions=directions,
        head=head,
        excluded=opened.config.excluded,
        chosen=opened.rows,
        device=opened.device,
    )


def _rows_trained(opened: Opened, trainee: Trainee) -> int:
    """Rows that it has learned from: fewer where it ended early."""
    steps = opened.steps if trainee.ending is None else trainee.ending.step
    return steps * opened.config.batch_rows


_HISTORIES = {
    "loss": named.LOSS, "fvu": named.FVU, "l0": named.L0, "learning_rate": named.LEARNING_RATE,
}  # fmt: skip


def _facts(opened: Opened, trainee: Trainee, folder: Path) -> RunFacts:
    spec, ending = trainee.spec, trainee.ending
    sites = ", ".join(map(str, spec.inputs))
    return RunFacts(
        name=trainee.name,
        architecture=spec.architecture,
        sites=sites if spec.target is None else f"{sites} → {spec.target}",
        written=tuple(map(str, spec.inputs))
        if spec.target is None
        else (f"{sites} → {spec.target}",),
        d_in=opened.dim,
        d_sae=spec.d_sae,
        options={**spec.options, "learning_rate": spec.optimizer.learning_rate},
        seed=spec.seed,
        rows_trained=_rows_trained(opened, trainee),
        state="complete" if ending is None else ending.words,
        history=_history(folder, trainee.dead_after_rows),
        dead_after_rows=trainee.dead_after_rows,
        lineage=_shown_lineage(opened.store, folder),
    )


def _history(folder: Path, dead_after_rows: int) -> dict[str, tuple[Any, Any]]:
    lines = read_metrics(folder)
    found = {}
    dead = {"dead_share": f"train/{dead_name(dead_after_rows)}"}
    for name, metric in {**_HISTORIES, **dead}.items():
        points = [(line[named.ROWS], line[metric]) for line in lines if metric in line]
        if points:
            rows, values = np.array(points).T
            found[name] = (rows, values)
    return found


def _shown_lineage(store: ActivationStore, folder: Path) -> Mapping[str, str]:
    model, code = store.provenance.model, code_version()
    return {
        "store": store.url,
        "fingerprint": shortened(store.fingerprint),
        "model": f"{model.get('name')} {model.get('revision', '')}".strip(),
        "code": f"actlake {code.actlake}, commit {code.commit or 'unknown'}"
        + (", with changes" if code.dirty else ""),
        "config": f"{folder / FILE}",
    }
