"""SAE against probe: the best single latent for each class, beside the probe's direction.

For each class of each task at the SAE's site, as "How GPT learns layer by layer" does: the latent
with the highest AUROC and the one with the highest F1 of "it fires", the probe's own AUROC and F1,
and the cosine of the probe's direction with the latents' decoder rows. Two things keep it honest:

* latents are chosen on training examples and scored on test examples; the best of thousands on the
  test rows would be best by luck;
* beside every cosine stands that of directions that mean nothing (the 95 % point, for one latent
  and for the nearest of all): differences of the means of random halves of the training examples.

Examples that are means over tokens have the mean of their tokens' latents.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from actlake.jobs.probe.artefact import Probe
from actlake.jobs.probe.config import ProbeConfig
from actlake.jobs.probe.examples import Examples
from actlake.jobs.probe.gathering import read_examples
from actlake.jobs.probe.latent_scores import (
    Fired,
    auroc,
    latent_auroc,
    latent_f1,
    random_cosines,
    unit_rows,
)
from actlake.jobs.probe.opening import Opened
from actlake.jobs.probe.splits import TEST, TRAIN
from actlake.jobs.sae.errors import DictionaryMismatch
from actlake.jobs.sae.trained import TrainedSAE, read_sae
from actlake.platform.seeds import Seeds
from actlake.storage import ActivationStore, Site

Array = np.ndarray[Any, Any]

FILE = "dictionary.parquet"
_ROWS_AT_ONCE = 2048
_RANDOM_DIRECTIONS = 200


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One class of one probe, and the latents that tell the same class."""

    task: str
    pooling: str
    offset: int
    site: str
    layer: int
    point: str
    probe: str
    class_name: str
    """The class, or in a multilabel task the label; of two classes the second."""
    train_examples: int
    """Examples that latents were chosen on."""
    test_examples: int
    positives: int
    """Members of the class among the test examples."""
    probe_auroc: float
    probe_f1: float
    latent: int
    """The latent with the highest AUROC on training examples, and its test scores."""
    latent_auroc: float
    latent_f1: float
    latent_density: float
    """Share of the test examples on which it fires."""
    cosine: float
    """Of the probe's direction with its decoder row."""
    f1_latent: int
    """The latent with the highest F1 on training examples, and its test scores."""
    f1_latent_auroc: float
    f1_latent_f1: float
    f1_latent_cosine: float
    nearest_latent: int
    """The latent whose decoder row is nearest to the probe's direction, by |cosine|."""
    nearest_cosine: float
    random_cosine: float
    """The 95 % point of |cosine| with one latent, of differences of random halves."""
    random_nearest_cosine: float
    """The 95 % point of the largest |cosine| of such a difference with any latent."""


def check_dictionary(config: ProbeConfig, store: ActivationStore, sites: Sequence[Site]) -> None:
    """Refuse an SAE that reads none of the probed sites, before anything is computed.

    Raises
    ------
    DictionaryMismatch
        There is none, it cannot be computed, or it was trained elsewhere.
    """
    assert config.dictionary is not None
    _site_of(read_sae(config.dictionary.path), config, store, sites)


def write_comparison(folder: Path, opened: Opened, config: ProbeConfig) -> None:
    """Write ``dictionary.parquet``: the SAE's best latents beside the probes of its site."""
    assert config.dictionary is not None
    sae = read_sae(config.dictionary.path)
    site = _site_of(sae, config, opened.store, opened.sites)
    rows = [
        asdict(found)
        for examples in opened.sets
        if examples.kind != "regression"
        for found in _compare(
            folder, opened.store, site, examples, sae, config.dictionary.examples,
            Seeds(config.seed).numpy(f"random directions {examples.name}"),
        )
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), folder / FILE)


def _site_of(
    sae: TrainedSAE, config: ProbeConfig, store: ActivationStore, sites: Sequence[Site]
) -> Site:
    """The site that an SAE reads, among those that are probed."""
    asked = config.dictionary
    assert asked is not None
    reads = [site for site in sites if sae.reads(site)]
    if asked.any_hook and not reads and len(sites) == 1:
        reads = list(sites)
    if len(reads) != 1:
        raise DictionaryMismatch(
            f"The SAE in {asked.path} was trained on {sae.hook}, and the probed sites are "
            f"{', '.join(map(str, sites))}\n"
            "hint: probe its site; or one site alone, with dictionary.any_hook: true"
        )
    if sae.is_transcoder:
        raise DictionaryMismatch(
            f"{asked.path} is a transcoder: its latents write to {sae.hook_out}, where the probes "
            "of its input have no direction\nhint: give an SAE"
        )
    sae.check(reads[0], store[reads[0]].shape[1], any_hook=asked.any_hook)
    return reads[0]


def _compare(
    folder: Path,
    store: ActivationStore,
    site: Site,
    examples: Examples,
    sae: TrainedSAE,
    most: int,
    rng: np.random.Generator,
) -> Iterator[Comparison]:
    train, test = _part(examples, TRAIN, most), _part(examples, TEST, None)
    fired_train = fired_on(store, site, examples, train, sae)
    fired_test = fired_on(store, site, examples, test, sae)
    rows = read_examples(store, site, examples, examples.where(TEST))
    decoder = unit_rows(_decoder(sae))
    control = random_cosines(
        decoder, _read(store, site, examples, train), draws=_RANDOM_DIRECTIONS, rng=rng
    )
    for probe in _probes(folder, examples, site):
        predicted = probe.predict(rows)
        decision = probe.decision(rows)
        for column, name in _columns(probe):
            members_train = _members(examples, name, train)
            members = _members(examples, name, test)
            said = predicted[:, column] if examples.kind == "multilabel" else predicted == name
            by_auroc = latent_auroc(fired_train, members_train)
            by_f1 = latent_f1(fired_train, members_train)
            auroc_test = latent_auroc(fired_test, members)
            f1_test = latent_f1(fired_test, members)
            direction = probe.direction(None if probe.kind == "binary" else name)
            cosines = decoder @ direction
            best, best_f1 = _best(by_auroc), _best(by_f1)
            nearest = _best(np.abs(cosines))
            yield Comparison(
                task=examples.task.called,
                pooling=examples.pooling,
                offset=examples.offset,
                site=str(site),
                layer=site.layer,
                point=site.point,
                probe=probe.probe,
                class_name=name,
                train_examples=len(train),
                test_examples=len(test),
                positives=int(members.sum()),
                probe_auroc=auroc(decision[:, column], members),
                probe_f1=_f1(said, members),
                latent=best,
                latent_auroc=float(auroc_test[best]),
                latent_f1=float(f1_test[best]),
                latent_density=float((fired_test.latent_M == best).sum() / max(1, len(test))),
                cosine=float(cosines[best]),
                f1_latent=best_f1,
                f1_latent_auroc=float(auroc_test[best_f1]),
                f1_latent_f1=float(f1_test[best_f1]),
                f1_latent_cosine=float(cosines[best_f1]),
                nearest_latent=nearest,
                nearest_cosine=float(cosines[nearest]),
                random_cosine=float(np.quantile(control[0], 0.95)),
                random_nearest_cosine=float(np.quantile(control[1], 0.95)),
            )


def fired_on(
    store: ActivationStore, site: Site, examples: Examples, which: Array, sae: TrainedSAE
) -> Fired:
    """Where latents fire on some examples; the mean over the rows of an example that has several.

    Parameters
    ----------
    which
        (n,) the examples, as places in the set; they are numbered from 0 in what is returned.
    """
    begins, ends = examples.bounds[which], examples.bounds[which + 1]
    lengths = ends - begins
    owner = np.repeat(np.arange(len(which)), lengths)
    offsets = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    rows = examples.rows[np.repeat(begins, lengths) + offsets]
    place, value = [np.zeros(0, np.int64)], [np.zeros(0)]
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = rows[start : start + _ROWS_AT_ONCE]
        row, latent, found = sae.encode_sparse(store[site].take(part).astype(np.float32))
        active = found > 0  # some architectures have negative latents, which say the opposite
        place.append(owner[start + row[active]] * sae.d_sae + latent[active])
        value.append(found[active].astype(np.float64))
    cells, inverse = np.unique(np.concatenate(place), return_inverse=True)
    sums = np.bincount(inverse, weights=np.concatenate(value), minlength=len(cells))
    example, latent = np.divmod(cells, sae.d_sae)
    mean = sums / lengths[example]
    return Fired(example, latent, mean, len(which), sae.d_sae)


def _read(store: ActivationStore, site: Site, examples: Examples, which: Array) -> Array:
    """(n, D) float32, the activations of some examples, given ascending."""
    kept = []
    for start in range(0, len(which), _ROWS_AT_ONCE):
        some = which[start : start + _ROWS_AT_ONCE]
        near = read_examples(store, site, examples, slice(int(some[0]), int(some[-1]) + 1))
        kept.append(near[some - some[0]])
    return np.concatenate(kept)


def _part(examples: Examples, split: int, most: int | None) -> Array:
    where = examples.where(split)
    places = np.arange(where.start, where.stop)
    if most is None or len(places) <= most:
        return places
    spread: Array = places[np.linspace(0, len(places) - 1, most).astype(np.int64)]
    return spread


def _probes(folder: Path, examples: Examples, site: Site) -> Iterator[Probe]:
    table = pq.read_table(
        folder / "probes.parquet", columns=["task", "pooling", "offset", "site", "folder"]
    )
    wanted = (*examples.key[:3], str(site))
    paths = [
        row["folder"]
        for row in table.to_pylist()
        if (row["task"], row["pooling"], row["offset"], row["site"]) == wanted
    ]
    for path in dict.fromkeys(paths):
        yield Probe.load(folder / path)


def _columns(probe: Probe) -> list[tuple[int, str]]:
    """The columns of a probe's decisions, and the class that each speaks for."""
    if probe.kind == "binary":
        return [(0, probe.classes[1])]
    return list(enumerate(probe.classes))


def _members(examples: Examples, name: str, which: Array) -> Array:
    """(n,) bool: the examples that belong to a class, or have a label."""
    code = list(examples.classes).index(name)
    targets = examples.targets[which]
    members: Array = targets[:, code] if examples.kind == "multilabel" else targets == code
    return members.astype(bool)


def _best(scores: Array) -> int:
    return int(np.nanargmax(scores)) if np.isfinite(scores).any() else 0


def _f1(said: Array, members: Array) -> float:
    both = int(said.sum()) + int(members.sum())
    return 2 * float((said & members).sum()) / both if both else 0.0


def _decoder(sae: TrainedSAE) -> Array:
    return sae.decoder.cpu().numpy()
