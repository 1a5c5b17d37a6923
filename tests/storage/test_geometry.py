"""How rows are cut into chunks and units, and what a schema refuses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actlake.storage import Geometry, StoreSchema, plan_geometry
from actlake.storage.errors import FormatTooNew, InvalidSchema

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
        "geometry": Geometry(chunk_rows=8, unit_rows=24),
    }
    return StoreSchema(**sizes | changes)


@given(requests)
def test_full_contexts_straddle_neither_chunks_nor_units(request):
    cut = plan_geometry(**request)

    assert cut.chunk_rows % request["context_length"] == 0
    assert cut.unit_rows % cut.chunk_rows == 0


@given(requests)
def test_chunks_and_units_keep_to_their_sizes_where_a_context_fits(request):
    cut = plan_geometry(**request)
    row_bytes = request["row_bytes"]

    one_context = request["context_length"]
    assert cut.chunk_rows == one_context or cut.chunk_rows * row_bytes <= 2 * 2**20
    assert cut.unit_rows == one_context or cut.unit_rows * row_bytes <= 128 * 2**20
    if request["unit_rows_at_most"] is not None:
        assert cut.unit_rows <= max(one_context, request["unit_rows_at_most"])


@given(requests)
def test_a_store_of_many_contexts_has_at_least_sixteen_units(request):
    cut = plan_geometry(**request)

    if request["rows"] >= 16 * request["context_length"]:
        assert -(-request["rows"] // cut.unit_rows) >= 16


@pytest.mark.parametrize(
    "name",
    ["row_bytes", "rows", "context_length", "unit_rows_at_most", "chunk_bytes", "shard_bytes"],
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
        ({"geometry": Geometry(chunk_rows=0, unit_rows=8)}, "geometry.chunk_rows must be at least"),
        ({"geometry": Geometry(chunk_rows=8, unit_rows=20)}, "unit_rows must be a multiple of"),
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
