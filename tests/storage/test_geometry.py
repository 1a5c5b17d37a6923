"""How rows are cut into chunks and units, and what a schema refuses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actlake.storage import Geometry, StoreSchema, plan_geometry
from actlake.storage.errors import FormatTooNew, InvalidSchema

MIB = 2**20
requests = st.fixed_dictionaries(
    {
        "row_bytes": st.integers(1, 36_000),
        "rows": st.integers(1, 10**10),
        "context_length": st.integers(1, 5000),
        "unit_rows_at_most": st.none() | st.integers(1, 10**6),
    }
)


def schema(**changes):
    sizes = {
        "rows": 100,
        "contexts": 10,
        "documents": 3,
        "layout": "documents",
        "context_length": 16,
        "splits": ("train", "test"),
        "special_ids": (0,),
        "geometry": Geometry(unit_rows=24),
    }
    return StoreSchema(**sizes | changes)


@given(requests)
def test_full_contexts_straddle_no_unit(request):
    cut = plan_geometry(**request)

    assert cut.unit_rows % request["context_length"] == 0


@given(requests, st.integers(1, 10**7))
def test_chunks_of_every_site_divide_the_unit_and_take_4_mib_whatever_the_context_length(
    request, row_bytes
):
    cut = plan_geometry(**request)
    chunk_rows = cut.chunk_rows(row_bytes)

    assert cut.unit_rows % chunk_rows == 0
    assert chunk_rows == 1 or chunk_rows * row_bytes <= 4 * MIB
    larger = range(chunk_rows + 1, min(cut.unit_rows, 4 * MIB // row_bytes) + 1)
    assert not any(cut.unit_rows % rows == 0 for rows in larger)


@pytest.mark.parametrize("dim", [64, 576, 4096, 5120, 16_384])
@pytest.mark.parametrize("context_length", [128, 1000, 2048, 32_768, 131_072])
def test_chunks_are_not_small_where_contexts_are_of_usual_lengths(dim, context_length):
    cut = plan_geometry(10**9, row_bytes=2 * dim, context_length=context_length)

    assert 1 * MIB < cut.chunk_rows(2 * dim) * 2 * dim <= 4 * MIB


@given(requests, st.integers(1, 64))
def test_units_keep_to_their_sizes_where_a_context_fits(request, num_sites):
    cut = plan_geometry(**request, num_sites=num_sites)
    row_bytes, one_context = request["row_bytes"], request["context_length"]
    unit_bytes = cut.unit_rows * row_bytes

    assert cut.unit_rows == one_context or unit_bytes <= 1024 * MIB
    if unit_bytes > 128 * MIB and cut.unit_rows > one_context:
        assert request["rows"] // cut.unit_rows >= 1024
        assert unit_bytes * num_sites <= 4096 * MIB
    if request["unit_rows_at_most"] is not None:
        assert cut.unit_rows <= max(one_context, request["unit_rows_at_most"])


@pytest.mark.parametrize(
    ("terabytes", "num_sites", "unit_mib"),
    [(0.001, 1, 48), (0.1, 1, 128), (1, 1, 930), (100, 1, 1024), (100, 8, 512), (100, 64, 128)],
)
def test_units_of_a_large_store_grow_to_a_gibibyte(terabytes, num_sites, unit_mib):
    rows = int(terabytes * 1e12) // 8192
    cut = plan_geometry(rows, row_bytes=8192, context_length=2048, num_sites=num_sites)

    assert 7 / 8 * unit_mib <= cut.unit_rows * 8192 / MIB <= unit_mib


@given(requests)
def test_a_store_of_many_contexts_has_at_least_sixteen_units(request):
    cut = plan_geometry(**request)

    if request["rows"] >= 16 * request["context_length"]:
        assert -(-request["rows"] // cut.unit_rows) >= 16


@pytest.mark.parametrize(
    "name",
    [
        "row_bytes",
        "rows",
        "context_length",
        "unit_rows_at_most",
        "chunk_bytes",
        "unit_bytes",
        "num_sites",
    ],
)
@pytest.mark.parametrize("size", [0, -3])
def test_sizes_that_are_not_positive_cannot_be_planned(name, size):
    sizes = {"row_bytes": 8, "rows": 9, "context_length": 3} | {name: size}

    with pytest.raises(InvalidSchema, match=f"{name} must be at least 1, and is {size}"):
        plan_geometry(**sizes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rows": -1}, "rows must be at least 1, and is -1"),
        ({"geometry": Geometry(chunk_bytes=0, unit_rows=8)}, "geometry.chunk_bytes must be at lea"),
        (
            {"geometry": Geometry(unit_rows=8, token_chunk_rows=8, token_shard_rows=20)},
            "token_shard_rows must be a multiple of token_chunk_rows; 20 is not one of 8",
        ),
        ({"splits": ()}, "Splits must be named"),
        ({"splits": ("a", "a")}, "each once"),
        ({"splits": tuple(map(str, range(128)))}, "at most 127 splits, not 128"),
    ],
)
def test_a_schema_that_cannot_be_says_why(changes, words):
    with pytest.raises(InvalidSchema, match=words):
        schema(**changes)


def test_a_schema_comes_back_from_its_json():
    assert StoreSchema.from_json(schema().as_json()) == schema()


@pytest.mark.parametrize("where", ["", "geometry"])
def test_a_schema_with_fields_of_a_newer_version_is_refused_by_name(where):
    data = schema().as_json()
    (data[where] if where else data)["quantised"] = 1

    with pytest.raises(FormatTooNew, match=r"unknown fields: quantised\nhint: .* newer actlake"):
        StoreSchema.from_json(data)
