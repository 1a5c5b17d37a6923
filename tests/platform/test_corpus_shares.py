"""A tenth is a tenth of the rows, to be expected, however documents differ in length."""

import json

import numpy as np
import pytest
from tests.platform.test_corpus_cut import Sink, letters

from actlake.platform.corpus import CorpusConfig, Documents, Files, SplitByHash, lay_out

TENTH = {"test": 0.1, "train": 0.9}


def laid_out(path, *, seed=0, fractions=TENTH, **how):
    config = CorpusConfig(
        source=Files(path=str(path), id_column="name"),
        splits=SplitByHash(fractions=fractions, seed=seed, allow_empty=tuple(fractions)),
        layout=Documents(),
        **how,
    )
    sink = Sink()
    return lay_out(config, letters(), sink), sink


def written(path, lengths):
    rows = [{"name": f"d{i}", "text": "ab " * n} for i, n in enumerate(lengths)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_over_seeds_a_split_has_its_share_of_the_rows_though_lengths_differ_widely(tmp_path):
    lengths = (1 + np.random.default_rng(0).pareto(1.5, 200) * 20).astype(int).tolist()
    path = written(tmp_path / "a.jsonl", lengths)

    reports = [laid_out(path, seed=seed)[0] for seed in range(60)]

    shares = np.array([r.rows_per_split["test"] / r.rows for r in reports])
    error = shares.std() / len(shares) ** 0.5
    assert max(lengths) > 10 * np.mean(lengths)
    assert shares.mean() == pytest.approx(0.1, abs=3 * error)
    assert error < 0.02


def test_parts_of_long_documents_bring_the_share_nearer(tmp_path):
    path = written(tmp_path / "a.jsonl", [2000, 1500, *[10] * 50])

    def spread(**how):
        reports = [laid_out(path, seed=seed, **how)[0] for seed in range(30)]
        return np.std([r.rows_per_split["test"] / r.rows for r in reports])

    assert spread(cut_documents=200) < spread() / 2


def test_a_documents_split_is_its_own_whatever_else_there_is(tmp_path):
    lengths = [5 * i + 1 for i in range(60)]
    every = {d.id: d.split for d in laid_out(written(tmp_path / "a.jsonl", lengths))[1].documents}
    some = {
        d.id: d.split for d in laid_out(written(tmp_path / "b.jsonl", lengths[:20]))[1].documents
    }

    assert some == {name: every[name] for name in some}


def test_shares_of_rows_far_from_those_expected_are_said_with_what_to_do(tmp_path, caplog):
    lengths = [1] * 30
    seed = 0
    report, sink = laid_out(written(tmp_path / "a.jsonl", lengths), seed=seed)
    test = [int(d.id[1:]) for d in sink.documents if d.split == "test"]
    assert not report.shares_are_far_off
    assert "shares" not in caplog.text
    lengths[test[0]] = 500

    report, _ = laid_out(written(tmp_path / "b.jsonl", lengths), seed=seed)

    share = f"{report.rows_per_split['test'] / report.rows:.1%}"
    assert report.shares_are_far_off
    assert f"test {share} (10.0% expected), train" in caplog.text
    assert "corpus.cut_documents" in caplog.text
    assert f"  test: {report.rows_per_split['test']:,} rows ({share}) of" in str(report)
