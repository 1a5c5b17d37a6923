"""`verify --repair`: what it mends, what it refuses before anything changes, and how it says so."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from actlake.jobs.cli import run
from actlake.jobs.repair import CannotRepair, plan_repair, repair
from actlake.storage import Lease, Problem, Site, add_sites, open_store, verify, write_unit
from actlake.storage.errors import StoreLocked
from actlake.storage.export import export_store
from actlake.storage.location import locate
from actlake.storage.resume import use_numerics

SITE = "resid_post.3"


def shard(unit, site=SITE):
    return f"rows.zarr/acts/{site}/c.{unit}.0"


def damage(folder, *names):
    for name in names:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 3] ^= 1
        (folder / name).write_bytes(content)


def everything(folder):
    """All files but the leases, which every driver makes and removes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.relative_to(folder).parts[0] not in ("partial", "log")
        and "lease" not in path.name
    }


def changed(before, folder):
    after = everything(folder)
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def changed_but_for_the_ledger(before, folder):
    """A driver announces itself there."""
    return {name for name in changed(before, folder) if not name.startswith("ledger/")}


@pytest.fixture
def store(tmp_path, smollm2_store):
    """A finished harvest of 24 units of three sites, of the test's own."""
    shutil.copytree(smollm2_store, tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def exported(smollm2_store, tmp_path):
    """An export of the harvest's test split."""
    export_store(open_store(smollm2_store), tmp_path / "exported", splits="test")
    return tmp_path / "exported"


@pytest.fixture
def verified(capsys):
    """``verified(folder, "--repair")``: run `actlake verify`; status and what it says."""

    def call(*arguments):
        status = run(["verify", *map(str, arguments)])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return status, captured.out + captured.err

    return call


def test_an_export_is_repaired_from_its_parent_where_it_was(exported, verified, tree):
    whole = tree(exported)
    damage(exported, shard(0), shard(1))

    status, said = verified(exported, "--repair")

    assert "To be repaired: 2 damaged shards from its parent, " in said
    assert "Repaired 2 shards and 0 derived files" in said
    assert status == 0
    assert tree(exported) == whole


def test_an_export_whose_parent_has_moved_is_told_so_and_repaired_once_it_is_named(
    store, tmp_path, verified, tree
):
    export_store(open_store(store), tmp_path / "exported", splits="test")
    exported = tmp_path / "exported"
    whole = tree(exported)
    store.rename(tmp_path / "moved")
    damage(exported, shard(0))
    before = everything(exported)

    status, said = verified(exported, "--repair")

    assert status == 1
    assert "Nothing of it can be repaired" in said
    assert f"exported from {store} (fingerprint" in said
    assert "hint: say where it is now, `actlake verify EXPORT --repair --parent STORE`" in said
    assert changed(before, exported) == set()
    status, said = verified(exported, "--repair", "--parent", tmp_path / "moved")
    assert status == 0, said
    assert tree(exported) == whole


def test_another_store_than_the_parent_is_refused_before_anything_changes(
    exported, tmp_path, verified
):
    damage(exported, shard(0))
    before = everything(exported)

    status, said = verified(exported, "--repair", "--parent", exported)

    assert status == 1
    assert "were exported from a store of fingerprint" in said
    assert changed(before, exported) == set()


def test_statistics_and_metadata_of_an_export_need_no_parent(store, tmp_path, verified, tree):
    export_store(open_store(store), tmp_path / "exported", splits="test")
    exported = tmp_path / "exported"
    whole = tree(exported)
    shutil.rmtree(store)
    damage(exported, f"moments/{SITE}/1/0/1.safetensors", "rows.zarr/acts/zarr.json")

    status, said = verified(exported, "--repair")

    assert "To be repaired: 1 damaged shards from their own rows; 1 derived files" in said
    assert status == 0
    assert tree(exported) == whole


def test_what_can_be_repaired_is_though_the_rest_cannot(store, tmp_path, verified):
    export_store(open_store(store), tmp_path / "exported", splits="test")
    exported = tmp_path / "exported"
    shutil.rmtree(store)
    moments = f"moments/{SITE}/1/0/1.safetensors"
    damage(exported, shard(0), shard(1, "resid_post.9"), moments)
    before = everything(exported)

    status, said = verified(exported, "--repair")

    assert status == 1
    assert "Repaired 1 shards" in said
    assert "Not repaired: resid_post.3, unit 0; resid_post.9, unit 1: The rows were exp" in said
    assert changed_but_for_the_ledger(before, exported) == {moments}


@pytest.mark.parametrize("name", ["documents.parquet", "rows.zarr/tokens/id/c.0"])
def test_a_damaged_corpus_is_refused_before_anything_changes(store, verified, name):
    damage(store, name, shard(3))
    before = everything(store)

    status, said = verified(store, "--repair")

    assert status == 1
    assert "cannot be repaired" in said
    assert "hint: rows are checked against its corpus and its ledger" in said
    assert changed(before, store) == set()


def test_a_model_that_is_gone_is_refused_before_anything_changes(store, verified, tmp_path):
    damage(store, shard(3))
    before = everything(store)

    status, said = verified(store, "--repair", "--model", tmp_path / "no-such-model")

    assert status == 1
    assert "Not repaired: resid_post.3, unit 3: " in said
    assert "no-such-model" in said
    assert changed(before, store) == set()


def test_another_model_is_refused_before_anything_changes(store, verified, tmp_path):
    import transformers

    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 10, "vocab_size": 9}
    config = transformers.LlamaConfig(**shape, num_attention_heads=1, num_key_value_heads=1)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "other")
    damage(store, shard(3))
    before = everything(store)

    status, said = verified(store, "--repair", "--model", tmp_path / "other")

    assert status == 1
    assert "Not repaired: resid_post.3, unit 3: " in said
    assert f"holds rows of revision {open_store(store).provenance.model['revision']}" in said
    assert changed(before, store) == set()


def test_other_numerics_are_refused_before_anything_changes(store, monkeypatch, verified):
    import torch

    damage(store, shard(3))
    before = everything(store)
    here = torch.__version__
    monkeypatch.setattr(torch, "__version__", "1.13.1")

    status, said = verified(store, "--repair")

    assert status == 1
    assert "computed with other numerics than there are here" in said
    assert f'torch: stored "{here}", asked "1.13.1"' in said
    assert "hint: repair it where and how the store was begun" in said
    assert changed(before, store) == set()


def test_a_unit_that_was_computed_elsewhere_is_told_from_those_computed_here(store):
    """A store may hold units of several numerics; each is compared with its own."""
    with Lease.acquire(locate(store)) as lease:
        number = use_numerics(lease, {"torch": "1.0"}, allow_other=True)
    damage(store, shard(3), shard(4))
    opened = open_store(store)
    report = verify(opened)
    elsewhere, here = (d.record for d in report.damaged)
    problems = [
        replace(problem, damage=replace(
            problem.damage, record=replace(elsewhere, numerics=number)
        )) if problem.unit == elsewhere.unit else problem
        for problem in report.problems
    ]  # fmt: skip

    planned = plan_repair(opened, replace(report, problems=tuple(problems)))

    assert [record.unit for record in planned.impossible] == [elsewhere.unit]
    assert [records for _, records in planned.sources] == [(here,)]


def test_a_store_of_which_nobody_said_how_it_was_computed_is_refused(store, tmp_path):
    export_store(open_store(store), tmp_path / "exported", splits="test")
    damage(tmp_path / "exported", shard(0))
    opened = open_store(tmp_path / "exported")
    opened.ledger.groups[:] = [replace(group, request={}) for group in opened.ledger.groups]

    planned = plan_repair(opened, verify(opened))

    assert planned.is_empty
    (why,) = planned.impossible.values()
    assert "does not say how resid_pre.0 was computed\nhint:" in why


def test_a_store_that_somebody_writes_to_is_not_repaired(exported, tmp_path):
    damage(exported, shard(0))
    opened = open_store(exported)
    planned = plan_repair(opened, verify(opened))
    before = everything(exported)

    with Lease.acquire(locate(exported)):
        before = everything(exported)
        with pytest.raises(StoreLocked):
            repair(planned)
        assert changed(before, exported) == set()


def test_a_damaged_ledger_is_refused(exported):
    opened = open_store(exported)
    report = verify(opened)
    lost = replace(report, problems=(Problem("ledger", "it is torn"),))

    with pytest.raises(CannotRepair, match=r"cannot be repaired: it is torn\nhint: "):
        plan_repair(opened, lost)


def test_where_to_repair_from_is_refused_without_repair(exported, capsys):
    with pytest.raises(SystemExit):
        run(["verify", str(exported), "--parent", "x"])
    assert "give --repair too" in capsys.readouterr().err


@pytest.mark.ray
def test_damaged_units_are_computed_again_to_the_same_bytes_and_nothing_else_is(
    store, actlake, smollm2_store, tree
):
    damage(store, shard(5), shard(7, "resid_post.9"))
    (store / shard(11)).unlink()
    damage(store, f"moments/{SITE}/1/0/6.safetensors")
    before = everything(store)

    status, out = actlake("verify", str(store), "--repair")

    assert status == 0, out
    assert "1 damaged shards from their own rows; 3 damaged shards from its model, " in out
    assert "Repaired 4 shards" in out
    assert tree(store) == tree(smollm2_store)
    assert changed_but_for_the_ledger(before, store) == {
        shard(5), shard(7, "resid_post.9"), shard(11), f"moments/{SITE}/1/0/6.safetensors",
    }  # fmt: skip


@pytest.mark.ray
def test_of_a_harvest_that_is_half_done_only_the_damaged_unit_is_computed(
    tmp_path, start, actlake, wait_for, harvest_arguments
):
    store = tmp_path / "store"
    driver = start(*harvest_arguments(store))
    wait_for(lambda: _committed(store) > 2, "no unit was committed")
    driver.kill()
    driver.process.communicate()
    half = open_store(store)
    missing = {site: half.committed([site]).runs() for site in half.sites}
    unit = next(iter(half.committed([SITE])))
    whole = (store / shard(unit)).read_bytes()
    damage(store, shard(unit))

    status, out = actlake("verify", str(store), "--repair")

    assert status == 0, out
    assert out.count("Computed again: ") == 1
    assert (store / shard(unit)).read_bytes() == whole
    again = open_store(store)
    assert {site: again.committed([site]).runs() for site in again.sites} == missing


def _committed(store):
    try:
        opened = open_store(store)
    except FileNotFoundError:
        return 0
    return len(opened.committed([SITE])) if SITE in opened else 0


@pytest.mark.ray
def test_a_harvest_that_finds_rows_lost_computes_them_again(
    store, actlake, harvest_arguments, smollm2_store, tree
):
    (store / shard(4)).unlink()
    cut = store / shard(8, "resid_post.9")
    cut.write_bytes(cut.read_bytes()[:-1])

    status, out = actlake(*harvest_arguments(store))

    assert status == 0, out
    assert "2 committed shards are missing or cut short" in out
    assert "is complete: 2 damaged shards were computed again" in out
    assert tree(store) == tree(smollm2_store)


@pytest.fixture
def not_of_the_model(store):
    """A site whose committed rows are not what its model computes."""
    site = Site(4, "attn_out")
    opened = open_store(store)
    with Lease.acquire(locate(store)) as lease:
        rows = opened.schema_of(SITE)
        add_sites(lease, opened, {site: rows}, opened.ledger.groups[0].request)
        opened.refresh()
        for unit in range(opened.schema.num_units):
            ones = np.ones((len(opened.schema.unit_extent(unit)), rows.dim), np.float16)
            lease.ledger.commit(write_unit(opened, unit, {site: ones}, token=lease.token))
    return store, str(site)


@pytest.mark.ray
@pytest.mark.parametrize("command", ["harvest", "verify"])
def test_what_the_model_gives_otherwise_is_said_and_not_written(
    not_of_the_model, actlake, harvest_arguments, command
):
    store, site = not_of_the_model
    (store / shard(4, site)).unlink()
    before = everything(store)
    arguments = [*harvest_arguments(store), "--sites", site]
    if command == "verify":
        arguments = ["verify", str(store), "--repair"]

    status, out = actlake(*arguments)

    assert status == 1
    assert f"{site}, unit 4: what comes out are other bytes than were committed" in out
    assert changed_but_for_the_ledger(before, store) == set()
