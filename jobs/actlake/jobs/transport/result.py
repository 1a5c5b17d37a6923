"""What a fit leaves behind: from moments to tables, operators, pictures and a page."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from actlake.jobs.chosen_rows import ChosenRows
from actlake.jobs.massive_rows import find_massive, massive_facts, without_massive
from actlake.jobs.model_of_store import chain_of_store, head_of_store, model_of_store
from actlake.jobs.progress_bar import progress
from actlake.jobs.report_page import publish
from actlake.jobs.transport import report
from actlake.jobs.transport.artefact import save_operator
from actlake.jobs.transport.causal import CONDITIONS, CausalScore, score_causally
from actlake.jobs.transport.config import TransportConfig
from actlake.jobs.transport.errors import InvalidTransport
from actlake.jobs.transport.features import FeatureScores, rows_to_test, score_features
from actlake.jobs.transport.fitting import PairFit, fit_pairs
from actlake.jobs.transport.metrics import r2_along
from actlake.jobs.transport.moments_file import StoredMoments
from actlake.jobs.transport.opening import Opened
from actlake.jobs.transport.operators import AffineMap
from actlake.jobs.transport.pairs import Pair
from actlake.jobs.transport.parts import TEST
from actlake.jobs.transport.shortcut import EarlyExit, ShortcutScore, score_shortcuts
from actlake.jobs.transport.tables import (
    causal_row,
    feature_block,
    map_rows,
    pair_columns,
    pair_row,
    rank_rows,
    shortcut_row,
    write_blocks,
    write_rows,
)
from actlake.jobs.whole_contexts import contexts_of_split
from actlake.platform.seeds import Seeds
from actlake.platform.tracking import Tracker
from actlake.storage import ActivationStore, Site
from actlake.storage.provenance import shortened


@dataclass
class ResultWriter:
    """One fit, from its moments to its report."""

    config: TransportConfig
    opened: Opened
    moments: StoredMoments
    folder: Path
    tracker: Tracker
    console: Console
    maps: dict[Pair, tuple[AffineMap, AffineMap]] = field(default_factory=dict)
    """Ridge and mean map of the pairs that a later test needs."""
    summaries: list[report.PairSummary] = field(default_factory=list)
    directions: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def run(self) -> dict[str, float]:
        """Fit, test and write everything; the final numbers."""
        self._fit()
        features = self._features()
        causal = self._causal()
        shortcuts, exits = self._shortcuts()
        findings = report.Findings(
            title=f"Transport operators of {_model_name(self.opened.stores)}",
            facts=self._facts(),
            pairs=self.summaries,
            warnings=self.warnings,
            features=features,
            causal=causal,
            shortcuts=shortcuts,
            exits=exits,
        )
        metrics = _final_metrics(findings)
        self._write_report(findings, metrics)
        return metrics

    def _fit(self) -> None:
        config = self.config
        maps: list[dict[str, Any]] = []
        ranks: list[dict[str, Any]] = []
        pairs: list[dict[str, Any]] = []
        with progress(self.console, "pairs", len(self.opened.pairs)) as advance:
            for fit in fit_pairs(
                self.moments,
                self.opened.pairs,
                alphas=config.alphas,
                choose_by=config.choose_by,
                intercept=config.intercept,
                curves=config.rank_curves,
            ):
                maps += map_rows(fit)
                ranks += rank_rows(fit)
                pairs.append(pair_row(fit))
                self.summaries.append(report.PairSummary.of(fit))
                self.warnings += fit.warnings
                self._save(fit)
                self._remember(fit)
                self._directions(fit)
                test = fit.ridge.test
                self.tracker.log({f"r2/{fit.pair.folder}": test.uniform}, step=len(self.summaries))
                advance(1)
        write_rows(maps, self.folder / "maps.parquet")
        write_rows(pairs, self.folder / "pairs.parquet")
        write_blocks(ranks, self.folder / "ranks.parquet")
        if self.directions:
            write_blocks(self.directions, self.folder / "directions.parquet")

    def _save(self, fit: PairFit) -> None:
        affine = {kind: tested.fitted for kind, tested in fit.maps.items()}
        about = {
            "store": {"fingerprint": self.opened.stores[0].fingerprint},
            "model": dict(self.opened.stores[0].provenance.model),
            "moments": self.moments.request.key,
            "rows_where": self.config.rows.where,
            "alpha": fit.ridge.fitted.alpha,
            "train_rows": fit.train_rows,
            "test_r2": asdict(fit.ridge.test),
        }
        for kind in self.config.save:
            chosen = affine.get(kind) or fit.ranked.get(kind)
            if chosen is None:
                raise InvalidTransport(
                    f"There is no {kind} map to save, since rank_curves is off\n"
                    "hint: leave it out of save, or turn rank_curves on"
                )
            mine = dict(about)
            if kind in fit.maps:
                mine |= {
                    "alpha": fit.maps[kind].fitted.alpha,
                    "test_r2": asdict(fit.maps[kind].test),
                }
            save_operator(
                chosen, fit.pair, mine, to=self.folder / "operators" / fit.pair.folder / kind
            )

    def _remember(self, fit: PairFit) -> None:
        wanted = (
            self.config.causal is not None
            or (self.config.dictionary is not None)
            or (self.config.shortcut is not None and fit.pair.target == self._last_site)
        )
        if wanted:
            self.maps[fit.pair] = (fit.ridge.fitted, fit.maps["mean"].fitted)

    def _directions(self, fit: PairFit) -> None:
        dictionary = self.opened.dictionary
        if dictionary is None or not self._reads(fit.pair):
            return
        test = self.moments.moments(fit.pair, TEST)
        along = r2_along(fit.ridge.fitted, test, dictionary.decoder.double().numpy())
        length = len(along)
        self.directions.append(
            {name: [value] * length for name, value in pair_columns(fit.pair).items()}
            | {"feature": np.arange(length, dtype=np.int32), "r2": along}
        )

    def _reads(self, pair: Pair) -> bool:
        dictionary, config = self.opened.dictionary, self.config.dictionary
        if dictionary is None or config is None:
            return False
        return config.any_hook or dictionary.reads(pair.target)

    def _features(self) -> dict[Pair, FeatureScores]:
        config, dictionary = self.config.dictionary, self.opened.dictionary
        if config is None or dictionary is None:
            return {}
        found = {
            pair: score_features(
                self.opened.stores,
                self.opened.shares,
                pair,
                fitted,
                dictionary,
                excluded=self.config.rows.excluded,
                limits=self.moments.limits,
                threshold=config.threshold,
                least_active=config.least_active,
            )
            for pair, (fitted, _) in self.maps.items()
            if self._reads(pair)
        }
        write_blocks([feature_block(p, s) for p, s in found.items()], self._file("features"))
        return found

    def _causal(self) -> list[CausalScore]:
        config = self.config.causal
        if config is None:
            return []
        store = self.opened.stores[0]
        chosen = np.unique(np.linspace(0, len(self.maps) - 1, config.pairs).astype(int))
        pairs = [list(self.maps)[place] for place in chosen]
        sites = {site for pair in pairs for site in (pair.source, pair.target)}
        chain = chain_of_store(store, self.config.model, sites)
        contexts = contexts_of_split(
            store, self.config.rows.test, config.contexts, chosen=self._ordinary_at(sites)
        )
        total = len(contexts) * len(pairs) * len(CONDITIONS)
        with progress(self.console, "replaced", total) as advance:
            scores = score_causally(
                chain,
                contexts,
                {pair: self.maps[pair] for pair in pairs},
                share=config.share,
                seeds=Seeds(self.config.seed),
                on_run=lambda: advance(1),
            )
        write_rows([causal_row(score) for score in scores], self._file("causal"))
        return scores

    def _ordinary_at(self, sites: Iterable[Site]) -> ChosenRows | None:
        """The chosen rows of the first store that are massive at none of some sites."""
        rows, store = self.config.rows, self.opened.stores[0]
        massive = find_massive(
            store, sites, split=rows.fit, max_norm=rows.max_norm, excluded=rows.excluded
        )
        return without_massive(store, self.opened.chosen, massive, excluded=rows.excluded)

    def _shortcuts(self) -> tuple[list[ShortcutScore], list[EarlyExit]]:
        config = self.config.shortcut
        if config is None:
            return [], []
        store, last = self.opened.stores[0], self._last_site
        maps = {
            pair.source: fitted
            for pair, (fitted, _) in self.maps.items()
            if pair.target == last and pair.offset == 0
        }
        if not maps:
            raise InvalidTransport(
                f"No pair ends at {last}, so there is no shortcut to the output\n"
                f"hint: harvest {last}, and have pairs that end there"
            )
        rows, groups = self._rows_to_predict(config.rows, {*maps, last})
        scores, exits = score_shortcuts(
            head_of_store(store, self.config.model),
            store,
            rows,
            groups,
            last,
            maps,
            thresholds=config.thresholds,
        )
        write_rows([shortcut_row(score) for score in scores], self._file("shortcuts"))
        if exits:
            write_rows([asdict(one) for one in exits], self._file("early_exit"))
        return scores, exits

    def _rows_to_predict(self, number: int, sites: Iterable[Site]) -> tuple[np.ndarray, np.ndarray]:
        """Test rows spread evenly, and the jackknife group of each."""
        store, shares = self.opened.stores[0], self.opened.shares
        excluded = self.config.rows.excluded
        found = np.sort(
            np.concatenate(list(rows_to_test(store, shares, 0, excluded=excluded, at_once=2**16)))
        )
        ordinary = self._ordinary_at(sites)
        if ordinary is not None:
            found = found[ordinary.holds(found)]
        chosen = found[np.unique(np.linspace(0, len(found) - 1, number).astype(np.int64))]
        share = shares.of_document[store.tokens["document"].take(chosen)]
        return chosen, share.astype(np.int64) - shares.names.index(shares.test_groups[0])

    @cached_property
    def _last_site(self) -> Site:
        model = model_of_store(self.opened.stores[0], self.config.model)
        return Site(model.num_layers - 1)

    def _facts(self) -> dict[str, str]:
        stores, moments, chosen = self.opened.stores, self.moments, self.opened.chosen
        rows = self.config.rows
        sites = sorted({pair.target for pair in self.opened.pairs})
        massive = find_massive(
            stores[-1], sites, split=self._split_of(stores[-1]), max_norm=rows.max_norm,
            excluded=rows.excluded,
        )  # fmt: skip
        facts = {
            "model": " → ".join(str(store.provenance.model.get("name", "")) for store in stores),
            "store": " → ".join(shortened(store.fingerprint) for store in stores),
            "rows": f"{moments.count('fit'):,} to fit, {moments.count('validate'):,} to choose α"
            + (" (then fitted on both)" if moments.held_out else "")
            + f", {moments.count(TEST):,} to test",
            "excluded": "nothing"
            if self.config.rows.excluded
            else "position 0 of each context and special tokens",
            "massive rows": "at the targets "
            + massive_facts(
                stores[-1],
                massive,
                sites,
                split=self._split_of(stores[-1]),
                excluded=rows.excluded,
            )
            + "; a map leaves out those of its source and target",
            "intervals": f"95 %, jackknife over {len(moments.groups)} groups of test documents, "
            "maps as fitted",
        }
        return facts if chosen is None else {**facts, "rows where": str(chosen)}

    def _split_of(self, store: ActivationStore) -> str | None:
        """The training split; of a store that has none of its name, all rows."""
        return self.config.rows.fit if self.config.rows.fit in store.schema.splits else None

    def _write_report(self, findings: report.Findings, metrics: Mapping[str, float]) -> None:
        drawn = report.draw(findings)
        page = report.page(findings, drawn)
        publish(self.folder, page, drawn, self.tracker, step=len(self.summaries))
        self.tracker.summary(dict(metrics))

    def _file(self, table: str) -> Path:
        return self.folder / f"{table}.parquet"


def _model_name(stores: Sequence[ActivationStore]) -> str:
    return " to ".join(str(store.provenance.model.get("name", "a model")) for store in stores)


def _final_metrics(findings: report.Findings) -> dict[str, float]:
    best = [one.r2["ridge"]["uniform"] for one in findings.pairs]
    metrics = {
        "pairs": float(len(best)),
        "r2/mean": float(np.mean(best)),
        "r2/max": float(np.max(best)),
        "r2/min": float(np.min(best)),
    }
    for pair, scores in findings.features.items():
        metrics[f"features_above_threshold/{pair.folder}"] = scores.share_above_threshold
    for score in findings.causal:
        metrics[f"delta_ce/{score.pair.folder}/{score.condition}"] = score.delta_ce.value
    for shortcut in findings.shortcuts:
        lens = shortcut.lens.replace(" ", "_")
        metrics[f"precision_at_1/{shortcut.source}/{lens}"] = shortcut.precision[1].value
    return metrics
