"""The sparse table of a store's latents: right, resumable, readable by others."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from filelock import FileLock
from rich.console import Console

from actlake.jobs.sae import encode as module
from actlake.jobs.sae.encode import encode_store
from actlake.jobs.sae.errors import AlreadyTraining, ConfigChanged, DictionaryMismatch, InvalidSAE
from actlake.jobs.sae.file_fields import ARCHITECTURES
from actlake.jobs.sae.publish import write_sae
from actlake.jobs.sae.trained import TrainedSAE, read_sae
from actlake.platform.cluster import ClusterConfig
from actlake.platform.runs import RunRecord
from actlake.storage import Site
from actlake.storage.errors import UnknownSplit

QUIET = Console(quiet=True)
D_SAE = 40
HOOK = "blocks.1.hook_resid_post"


def make_sae(architecture: str = "topk", *, width: int = 16, hook: str = HOOK) -> TrainedSAE:
    made = torch.Generator().manual_seed(5)
    sites = 2 if architecture.endswith("crosscoder") else 1
    tensors = {
        "W_enc": torch.randn(sites * width, D_SAE, generator=made),
        "W_dec": torch.randn(D_SAE, sites * width, generator=made),
        "b_dec": torch.randn(sites * width, generator=made) * 0.1,
        **{name: torch.randn(D_SAE, generator=made) for name in ("b_enc", "b_gate", "b_mag")},
        "r_mag": torch.zeros(D_SAE),
        "threshold": torch.rand(D_SAE, generator=made),
    }
    tensors = {name: tensors[name] for name in ARCHITECTURES[architecture]}
    about = {
        "architecture": architecture, "apply_b_dec_to_input": sites != 2,
        "normalize_activations": "none", "metadata": {"hook_name": hook},
    }  # fmt: skip
    if "topk" in architecture:
        about["k"] = 5
    if sites == 2:
        about |= {"num_sites": 2, "metadata": {"sites": ["resid_post.0", "resid_post.2"]}}
    if architecture == "matching_pursuit":
        about |= {"max_iterations": 4, "residual_threshold": 1e-3}
    return TrainedSAE(about, tensors)


@pytest.fixture
def save(tmp_path) -> Callable[..., str]:
    def write(architecture: str = "topk", **how) -> str:
        folder = tmp_path / f"{architecture}-sae"
        write_sae(make_sae(architecture, **how), folder)
        return str(folder)

    return write


def expected(spoken, sae: TrainedSAE, sites: list[Site], keep: np.ndarray) -> pd.DataFrame:
    """The table, from dense latents of all rows at once."""
    parts = [torch.from_numpy(spoken.acts[site]) for site in sites]
    f = sae.encode(parts[0] if len(parts) == 1 else torch.stack(parts, dim=1)).numpy()
    f[~keep] = 0
    row, latent = np.nonzero(f)
    return pd.DataFrame({"row": row, "latent": latent.astype(np.int32), "value": f[row, latent]})


@pytest.mark.parametrize(
    "architecture",
    ["standard", "gated", "jumprelu", "topk", "abstopk", "matching_pursuit", "topk_crosscoder"],
)
def test_the_table_holds_every_active_latent_of_every_row_and_nothing_else(
    spoken, save, tmp_path, architecture
) -> None:
    path = save(architecture)

    result = encode_store(path, str(spoken.folder), tmp_path / "out", part_rows=480, console=QUIET)

    sites = [Site(0), Site(2)] if architecture.endswith("crosscoder") else [Site(1)]
    wanted = expected(spoken, read_sae(path), sites, spoken.allowed.reshape(-1))
    found = pd.read_parquet(result.folder / "latents")
    pd.testing.assert_frame_equal(found, wanted, rtol=1e-5, check_dtype=True)
    assert result.values == len(wanted) > 0
    assert result.rows == spoken.allowed.sum()
    assert result.l0 == pytest.approx(len(wanted) / spoken.allowed.sum())
    names = sorted(one.name for one in (result.folder / "latents").iterdir())
    assert names == ["part-000000.parquet", "part-000002.parquet", "part-000004.parquet"]


def test_rows_are_encoded_in_the_threads_that_are_asked_for(
    spoken, save, tmp_path, monkeypatch, pools
) -> None:
    real, seen, before = module._blocks, [], pools()

    def noting(*arguments):
        seen.append(set(pools().values()))
        return real(*arguments)

    monkeypatch.setattr(module, "_blocks", noting)

    encode_store(save(), str(spoken.folder), tmp_path / "out", threads=3, console=QUIET)

    assert seen
    assert all(threads == {3} for threads in seen)
    assert pools() == before


def test_duckdb_pandas_and_polars_read_one_and_the_same_table(spoken, save, tmp_path) -> None:
    result = encode_store(
        save(), str(spoken.folder), tmp_path / "out", part_rows=240, split="test", console=QUIET
    )

    by_pandas = pd.read_parquet(result.folder / "latents")
    by_polars = pl.read_parquet(result.parquet)
    query = f"select latent, count(*) n, max(value) m from '{result.parquet}' group by 1 order by 1"
    by_duckdb = duckdb.sql(query).fetchall()

    assert by_polars.to_pandas().equals(by_pandas)
    assert by_polars.schema == {"row": pl.Int64, "latent": pl.Int32, "value": pl.Float32}
    grouped = by_pandas.groupby("latent")["value"].agg(["size", "max"])
    assert [(a, b) for a, b, _ in by_duckdb] == list(grouped["size"].items())
    assert [c for _, _, c in by_duckdb] == pytest.approx(grouped["max"].tolist())
    of_test = np.isin(np.arange(len(spoken.ids)), spoken.contexts("test"))
    assert set(by_pandas["row"]) == set(np.flatnonzero(of_test.repeat(24) & spoken.allowed.ravel()))


def test_excluded_rows_are_encoded_when_asked_for(spoken, save, tmp_path) -> None:
    result = encode_store(
        save(), str(spoken.folder), tmp_path / "out", excluded=True, console=QUIET
    )

    every = np.ones(spoken.ids.size, bool)
    wanted = expected(spoken, make_sae(), [Site(1)], every)
    found = pd.read_parquet(result.folder / "latents")
    pd.testing.assert_frame_equal(found, wanted, rtol=1e-5)
    assert result.rows == spoken.ids.size


KILLED_IN_THE_SECOND_PART = """
import os, signal, sys
from rich.console import Console
from actlake.jobs.sae import encode, encoded
write = encoded.write_part
def write_part(folder, part, blocks):
    def until(blocks):
        for number, block in enumerate(blocks):
            if part.first == 2 and number == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            yield block
    return write(folder, part, until(blocks))
encode.write_part = write_part
sae, store, out = sys.argv[1:]
encode.encode_store(sae, store, out, part_rows=480, console=Console(quiet=True))
"""


def test_a_killed_encoding_goes_on_and_ends_byte_for_byte_as_an_undisturbed_one(
    spoken, save, tmp_path
) -> None:
    sae, store = save(), str(spoken.folder)
    whole = encode_store(sae, store, tmp_path / "whole", part_rows=480, console=QUIET)
    killed = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED_IN_THE_SECOND_PART, sae, store, str(killed)]
    assert subprocess.run(command, check=False).returncode == -9
    left = {one.name for one in (killed / "latents").iterdir()}
    first = killed / "latents" / "part-000000.parquet"
    written = first.stat().st_mtime_ns
    assert len(left) == 2  # the first part, and what was begun of the second
    assert not (killed / "run.json").exists()

    result = encode_store(sae, store, killed, part_rows=99, console=QUIET)

    assert first.stat().st_mtime_ns == written
    assert (result.rows, result.values) == (whole.rows, whole.values)
    files = [
        {one.name: one.read_bytes() for one in (folder / "latents").iterdir()}
        for folder in (killed, whole.folder)
    ]
    assert files[0] == files[1]


def test_a_finished_table_is_found_and_says_where_it_comes_from(spoken, save, tmp_path) -> None:
    sae, store = save(), str(spoken.folder)
    first = encode_store(sae, store, tmp_path / "out", console=QUIET)

    again = encode_store(sae, store, tmp_path / "out", console=QUIET)

    record = RunRecord.load(first.folder)
    assert again.was_there
    assert (again.rows, again.values) == (first.rows, first.values)
    assert record.inputs["store"].fingerprint == spoken.store().fingerprint
    assert record.inputs["sae"].fingerprint == module.fingerprint(sae)
    assert record.config["sites"] == ["resid_post.1"]
    assert record.metrics["l0"] == first.l0


def test_another_encoding_in_the_same_folder_is_refused_by_its_differences(
    spoken, save, tmp_path
) -> None:
    sae, store, out = save(), str(spoken.folder), tmp_path / "out"
    encode_store(sae, store, out, split="test", console=QUIET)

    with pytest.raises(ConfigChanged, match="split 'test', not None\nhint"):
        encode_store(sae, store, out, console=QUIET)
    with pytest.raises(ConfigChanged, match=r"sae '\w+', not '\w+'"):
        encode_store(save("standard"), store, out, split="test", console=QUIET)
    with pytest.raises(InvalidSAE, match=r"already something at .*no encoding\.json"):
        encode_store(sae, store, spoken.folder, console=QUIET)


def test_two_processes_do_not_encode_into_one_folder(spoken, save, tmp_path) -> None:
    sae, store, out = save(), str(spoken.folder), tmp_path / "out"
    encode_store(sae, store, out, console=QUIET)
    (out / "run.json").unlink()

    with (
        FileLock(out / ".lock"),
        pytest.raises(AlreadyTraining, match="Another process is encoding into"),
    ):
        encode_store(sae, store, out, console=QUIET)


@pytest.mark.parametrize(
    ("how", "options", "words"),
    [
        ({"width": 8}, {}, "reads rows of width 8; those of .* have 16"),
        ({"hook": "blocks.7.hook_resid_post"}, {}, "names blocks.7.hook_resid_post; "),
        ({}, {"sites": ["resid_post.2"]}, "blocks.1.hook_resid_post, and not on resid_post.2"),
        ({}, {"sites": ["resid_post.0", "resid_post.1"]}, r"reads 1 site\(s\), and 2 are given"),
    ],
)  # fmt: skip
def test_an_sae_of_another_model_or_site_is_refused_before_anything_is_written(
    spoken, save, tmp_path, how, options, words
) -> None:
    with pytest.raises(DictionaryMismatch, match=words):
        encode_store(save(**how), str(spoken.folder), tmp_path / "out", console=QUIET, **options)

    assert not (tmp_path / "out").exists()


def test_a_split_that_is_not_there_is_refused_and_another_hook_can_be_allowed(
    spoken, save, tmp_path
) -> None:
    sae, store = save(hook="blocks.7.hook_resid_post"), str(spoken.folder)
    with pytest.raises(UnknownSplit):
        encode_store(
            sae, store, tmp_path / "out", sites=["resid_post.2"], any_hook=True, split="dev",
            console=QUIET,
        )  # fmt: skip

    result = encode_store(
        sae, store, tmp_path / "out", sites=["resid_post.2"], any_hook=True, console=QUIET
    )

    wanted = expected(spoken, make_sae(), [Site(2)], spoken.allowed.reshape(-1))
    assert result.values == len(wanted)


@pytest.mark.ray
def test_two_workers_write_the_same_bytes_as_one(spoken, save, tmp_path) -> None:
    sae, store = save("jumprelu"), str(spoken.folder)
    alone = encode_store(sae, store, tmp_path / "one", part_rows=480, console=QUIET)

    both = encode_store(
        sae, store, tmp_path / "two", part_rows=480, workers=2, cluster=ClusterConfig(num_cpus=2),
        console=QUIET,
    )  # fmt: skip

    assert (both.rows, both.values) == (alone.rows, alone.values)
    for part in (alone.folder / "latents").iterdir():
        assert (both.folder / "latents" / part.name).read_bytes() == part.read_bytes()


def test_the_command_says_what_it_has_written(spoken, save, tmp_path, capsys) -> None:
    arguments = [save(), str(spoken.folder), "--out", str(tmp_path / "out"), "--split", "test"]

    assert module.main(arguments) == 0
    first = capsys.readouterr().out
    assert module.main(arguments) == 0
    second = capsys.readouterr().out

    rows = spoken.allowed[spoken.contexts("test")].sum()
    lines = sum(pq.read_metadata(one).num_rows for one in (tmp_path / "out/latents").iterdir())
    assert f"{lines:,} activations of {rows:,} rows (L0 5.0) in " in first
    assert "is complete already; nothing was done" in second
    assert Path(tmp_path / "out" / "encoding.json").is_file()
