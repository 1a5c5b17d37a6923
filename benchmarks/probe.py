"""Linear probes at every layer, against scikit-learn site by site.

The store holds SmolLM2's residual stream at 31 sites, on 35 thousand tokens: the beginnings of
the 500 texts of the Brown corpus, 23 thousand rows of it for training. From each token the next
one is predicted: whether it begins a word with a capital (binary), and which of six kinds it is
(function word, other word, capital, continuation, digit, punctuation). Timed are

    ours     `actlake.jobs.probe`: rows of a site gathered once, five penalties of each task, the
             best chosen on validation rows, solved to convergence and scored on test rows; as
             many sites side by side as there are cores
    theirs   the same rows gathered and standardised, LogisticRegression of scikit-learn (lbfgs,
             its default tolerance, float32) for each penalty, the best chosen on validation
             rows; on a few sites, extrapolated to all. Once with all cores and once with one
             thread, whose time is divided by the cores; the better of the two counts

and compared is the log-loss on test rows of what each has chosen, in the worst of those sites
and tasks. What controls (shuffled labels and a control task, each with all penalties) and the
learning curve take beside is told too. Time during which this process was suspended does not
count.

    python benchmarks/probe.py                   4 minutes on 2 cores, 2 more the first time
    python benchmarks/probe.py --store FOLDER    a store that has the sites already
"""

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import prepare
from measuring import Clock, PeakMemory, shown, tell
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from texts import brown_folder
from threadpoolctl import threadpool_limits

from actlake.jobs.harvest import HarvestConfig, harvest
from actlake.jobs.probe import Examples, ProbeConfig, StoreSplits, TaskConfig
from actlake.jobs.probe.controls import heads_of
from actlake.jobs.probe.fitting import fit_examples
from actlake.jobs.probe.gathering import Held, read_examples
from actlake.jobs.probe.metrics import ClassTest, probabilities
from actlake.jobs.probe.opening import Opened, open_config
from actlake.jobs.probe.splits import TEST, TRAIN, VALIDATE
from actlake.platform.compute_threads import compute_threads
from actlake.platform.corpus import CorpusConfig, Documents, Files, SplitByHash
from actlake.platform.models import ModelConfig, smollm2_folder
from actlake.platform.seeds import Seeds
from actlake.platform.tracking import TrackingConfig
from actlake.storage import ActivationStore, Site, open_store

SITES = (Site(0, "resid_pre"), *(Site(layer) for layer in range(30)))
PENALTIES = (1.0, 10.0, 100.0, 1e3, 1e4)
THEIR_SITES = (Site(2), Site(12), Site(22))
CHARACTERS = 320
LEAST_SPEEDUP, MOST_LOSS = 2.0, 0.01
FUNCTION_WORDS = frozenset(
    (
        *("the", "a", "an", "of", "in", "to", "and", "for", "on", "with", "by", "at", "from"),
        *("that", "was", "is", "he", "his", "it", "as", "be", "had", "were", "or", "but", "which"),
    )
)


def make_store(folder: Path) -> None:
    """Harvest the benchmark's store: all layers of SmolLM2, about 2 minutes on 2 cores."""
    with tempfile.TemporaryDirectory() as scratch:
        corpus = Path(scratch) / "brown.jsonl"
        with corpus.open("w") as file:
            for path in sorted(brown_folder().glob("c*.txt")):
                text = path.read_text()[:CHARACTERS].rpartition(" ")[0]
                file.write(json.dumps({"id": path.stem, "text": text}) + "\n")
        result = harvest(
            HarvestConfig(
                store=str(folder),
                model=ModelConfig(name=str(smollm2_folder())),
                sites=SITES,
                corpus=CorpusConfig(
                    source=Files(path=str(corpus), id_column="id"),
                    layout=Documents(),
                    splits=SplitByHash(fractions={"train": 0.7, "validation": 0.15, "test": 0.15}),
                ),
                tracking=TrackingConfig(wandb="disabled"),
            )
        )
    assert result.complete


def kind_of(piece: str) -> str:
    """What a token is, by its name in the tokenizer's file."""
    word = piece.lstrip("Ġ")
    if not word or not word[0].isalnum():
        return "punctuation"
    if word[0].isdigit():
        return "digit"
    if not piece.startswith("Ġ"):
        return "continuation"
    if word[0].isupper():
        return "capital"
    return "function" if word in FUNCTION_WORDS else "word"


def attach_kinds(store: ActivationStore) -> None:
    """``next_token``: of each row, what the token is that follows it."""
    tokenizer = store.tokenizer
    names = [tokenizer.id_to_token(i) or "" for i in range(tokenizer.get_vocab_size())]
    kinds = np.array([kind_of(name) for name in names])
    ids, position = store.tokens["id"][:], store.tokens["position"][:]
    rows = np.flatnonzero(position[1:] == position[:-1] + 1)
    kind = kinds[ids[rows + 1]]
    table = {"row": rows, "kind": kind.tolist(), "capital": kind == "capital"}
    store.attach_labels("next_token", table, key="row", replace=True)


def config_for(store: str, **options: object) -> ProbeConfig:
    given = {
        "store": store,
        "out": "unused",
        "tasks": tuple(
            TaskConfig(labels="next_token", column=column) for column in ("capital", "kind")
        ),
        "probes": ("logistic",),
        "penalties": PENALTIES,
        "controls": (),
        "learning_curve": (),
        "splits": StoreSplits(validate="validation"),
        "device": "cpu",
        **options,
    }
    return ProbeConfig(**given)


def ours(opened: Opened, config: ProbeConfig, site: Site) -> list[float]:
    """Test log-loss in nats of each task at one site, and everything that leads there."""
    held = Held.of(opened.store, site, opened.sets)
    losses = []
    for examples in opened.sets:
        heads = heads_of(examples, config.controls, Seeds(config.seed))
        fitted = fit_examples(
            held.take, opened.store.schema_of(site).dim, examples, heads, config,
            stream=False, device=opened.device,
        )  # fmt: skip
        test = examples.where(TEST)
        prior = np.full(len(examples.classes), 1 / len(examples.classes))
        found = ClassTest(
            probabilities(fitted.scores[0][:, 0]),
            examples.targets[test],
            examples.group[test],
            prior,
        )
        losses.append(float(found.loss_bits.mean() * np.log(2)))
    return losses


def all_sites(
    opened: Opened, config: ProbeConfig, sites: Sequence[Site]
) -> dict[Site, list[float]]:
    """`ours` of several sites, side by side as the job does it."""
    with compute_threads(opened.threads), ThreadPoolExecutor(opened.at_once) as pool:
        found = pool.map(lambda site: ours(opened, config, site), sites)
        return dict(zip(sites, found, strict=True))


def theirs(store: ActivationStore, site: Site, examples: Examples) -> float:
    """Test log-loss in nats of scikit-learn's best."""
    acts = read_examples(store, site, examples)
    train, validate, test = (examples.where(split) for split in (TRAIN, VALIDATE, TEST))
    scaler = StandardScaler().fit(acts[train])
    rows = scaler.transform(acts)
    codes, labels = examples.targets, np.arange(len(examples.classes))
    fitted = []
    for penalty in PENALTIES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            probe = LogisticRegression(C=1 / penalty, max_iter=1000).fit(rows[train], codes[train])
        said = probe.predict_proba(rows[validate])
        fitted.append((log_loss(codes[validate], said, labels=labels), probe))
    _, best = min(fitted, key=lambda one: one[0])
    return float(log_loss(codes[test], best.predict_proba(rows[test]), labels=labels))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", default=None)
    parser.add_argument("--threads", type=int, default=None, help="of both; all cores if left out")
    options = parser.parse_args()
    Clock.start()
    folder = str(options.store or prepare.once("probe-smollm2-2", make_store))
    store = open_store(folder)
    attach_kinds(store)
    config = config_for(folder, threads=options.threads)
    opened = open_config(config)
    rows = len(opened.sets[0])
    print(f"{rows:,} rows, {len(SITES)} sites, {len(PENALTIES)} penalties", flush=True)
    with compute_threads(opened.threads):
        ours(opened, config, SITES[0])  # what is slow only the first time

    with PeakMemory() as memory:
        clock = Clock()
        losses = all_sites(opened, config, SITES)
        our_s = clock.stop()
    print(f"ours {shown(our_s)} for {len(SITES)} sites", flush=True)

    cores = opened.at_once * opened.threads
    together, alone, differences = [], [], []
    for site in THEIR_SITES:
        with threadpool_limits(cores):
            clock = Clock()
            found = [theirs(store, site, examples) for examples in opened.sets]
            together.append(clock.stop())
        with threadpool_limits(1):
            clock = Clock()
            for examples in opened.sets:
                theirs(store, site, examples)
            alone.append(clock.stop())
        differences += [ours / their - 1 for ours, their in zip(losses[site], found, strict=True)]
        listed = ", ".join(
            f"{examples.task.called} {one:.4f} (ours {other:.4f})"
            for examples, one, other in zip(opened.sets, found, losses[site], strict=True)
        )
        print(
            f"{site}: scikit-learn {shown(together[-1])}, with one thread {shown(alone[-1])}: "
            f"{listed}",
            flush=True,
        )
    all_threads_s, one_thread_s = (
        np.mean(seconds, axis=0) * len(SITES) for seconds in (together, alone)
    )
    # As if as many processes of one thread as there are cores never stood in each other's way.
    their_s = min(all_threads_s[0], one_thread_s[0] / cores)

    full = config_for(folder, controls=("shuffled", "word_type"), learning_curve=(0.1, 0.3))
    clock = Clock()
    all_sites(opened, full, THEIR_SITES)
    full_s = clock.stop() / len(THEIR_SITES) * len(SITES)

    speedup = their_s / our_s[0]
    worst = max(differences)
    tell(
        {
            "speedup": speedup,
            "log_loss_rel_diff": worst,
            "peak_anon_mb": memory.peak,
            "speedup_cpu": one_thread_s[1] / our_s[1],
            "speedup_over_all_threads": all_threads_s[0] / our_s[0],
            "peak_anon_above_start_mb": memory.growth,
            "rows": rows,
            "train_rows": opened.sets[0].count(TRAIN),
            "sites": len(SITES),
            "our_s": our_s[0],
            "our_s_with_controls_and_curve": full_s[0],
            "their_s_a_site": all_threads_s[0] / len(SITES),
            "their_s_a_site_one_thread": one_thread_s[0] / len(SITES),
        }
    )
    return int(speedup < LEAST_SPEEDUP or worst > MOST_LOSS)


if __name__ == "__main__":
    sys.exit(main())
