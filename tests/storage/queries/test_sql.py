"""SQL sees the store's tables, all of them, and nothing else."""

import re
import subprocess
import sys
from collections import Counter

import numpy as np
import polars
import pyarrow as pa
import pytest

from actlake.storage.errors import InvalidQuery, MissingExtra, StoreDamaged


def test_tokens_are_those_of_the_store(told):
    table = told.store().sql("select * from tokens order by row").table()

    columns = ["row", "id", "document_number", "position", "char", "context", "split"]
    assert table.column_names == columns
    assert table["row"].to_pylist() == list(range(len(told.ids)))
    assert table["id"].to_pylist() == told.ids.tolist()
    assert table["document_number"].to_pylist() == told.documents.tolist()
    assert table["position"].to_pylist() == told.positions.tolist()
    assert table["split"].to_pylist() == told.splits


def test_tokens_join_documents_and_the_vocabulary(told):
    query = """
        select documents.id, vocabulary.text, count(*) as n
        from tokens join documents using (document_number)
        join vocabulary on tokens.id = vocabulary.id
        where words > 2 group by all
    """

    counted = {
        (row["id"], row["text"]): row["n"] for row in told.store().sql(query).table().to_pylist()
    }

    texts = told.store().lookup.vocabulary.texts
    expected = Counter(
        (name, texts[token])
        for name, token, text in zip(told.names, told.ids.tolist(), told.texts, strict=True)
        if len(text.split()) > 2
    )
    assert counted == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("select count(*) from tokens", lambda told: len(told.ids)),
        ("select count(*) from tokens a join tokens b using (row)", lambda told: len(told.ids)),
        ("select sum(t.c) from tokens t(a, b, c)", lambda told: int(told.documents.sum())),
        ("select sum(t.position) from tokens t", lambda told: int(told.positions.sum())),
        ("select max(u.position) from (select t as u from tokens t)", lambda told: 15),
        ("with t as (from tokens) select max(position) from t", lambda told: 15),
        ("select max(columns('posi.*')) from tokens", lambda told: 15),
        ("select count(*) from tokens natural join vocabulary", lambda told: len(told.ids)),
        ("select count(*) from documents", lambda told: 6),
    ],
)  # fmt: skip
def test_columns_are_read_however_they_are_named(told, query, expected):
    [[value]] = [list(row.values()) for row in told.store().sql(query).table().to_pylist()]

    assert value == expected(told)


def test_a_result_with_rows_becomes_rows(told):
    rows = told.store().sql("select row, id from tokens where position = 2 order by id").rows()

    assert rows.rows.tolist() == np.flatnonzero(told.positions == 2).tolist()
    np.testing.assert_array_equal(rows.acts("resid_post.2"), told.acts[rows.rows])


def test_a_result_is_arrow_pandas_polars_and_text(told):
    result = told.store().sql("select id, count(*) as n from tokens group by id order by id")

    counts = Counter(told.ids.tolist())
    expected = sorted(counts.items())
    assert list(result.to_pandas().itertuples(index=False, name=None)) == expected
    assert polars.DataFrame(result).rows() == expected
    assert pa.table(result).num_rows == len(result) == len(expected)
    assert sum(batch.num_rows for batch in result.batches()) == len(expected)
    assert repr(result).startswith("id | n\n")
    assert f"and {len(expected) - 20} more rows" in repr(result)
    assert "<table>" in result._repr_html_()


def test_to_show_a_result_only_its_first_rows_are_read(told, monkeypatch):
    from actlake.storage.querying import relations

    monkeypatch.setattr(relations, "_ROWS_AT_ONCE", 16)
    store = told.store()
    seen = []
    read = store.tokens["id"].read

    def watched(start, stop, **how):
        seen.append((start, stop))
        return read(start, stop, **how)

    monkeypatch.setattr(store.tokens["id"], "read", watched)
    result = store.sql("select row, id from tokens")

    text, page = repr(result), result._repr_html_()

    rows = [f"{row} | {token}" for row, token in enumerate(told.ids[:20].tolist())]
    assert text.split("\n") == ["row | id", *rows, "… and more rows"]
    assert page.count("<tr>") == 21
    assert page.endswith("<small>… and more rows</small>")
    assert max(stop for _, stop in seen) < len(told.ids)


def test_a_result_that_was_read_says_how_many_rows_it_does_not_show(told):
    result = told.store().sql("select row from tokens order by row desc")
    shown = repr(result)

    result.table()

    assert shown.endswith("\n… and more rows")
    assert repr(result) == shown.replace("more", f"{len(told.ids) - 20} more")


def test_a_short_result_is_shown_whole_with_columns_of_one_name(told):
    result = told.store().sql("select row, row from tokens where row < 20")

    assert repr(result) == "\n".join(["row | row", *(f"{row} | {row}" for row in range(20))])


def test_what_a_predicate_finds_is_what_the_rows_say(told):
    rows = told.store().find(where="document_id in ('york', 'snow') and words > 3 and char >= 5")

    expected = [
        row
        for row, (name, (start, _)) in enumerate(zip(told.names, told.spans, strict=True))
        if name in ("york", "snow") and (start >= 5 or start == -1)
    ]
    assert rows.rows.tolist() == expected


def test_a_predicate_on_few_rows_reads_only_those(told, monkeypatch):
    store = told.store()
    few = store.find(text="Paris")
    monkeypatch.setattr(type(store.tokens["position"]), "read", None)  # a scan would need it

    found = store.find(text="Paris", where="position > 4")

    assert set(found) == {row for row in few if told.positions[row] > 4}


def test_a_subquery_asks_all_tokens_whatever_rows_are_asked_about(told):
    store = told.store()

    found = store.find(
        document="york",
        where="id in (select id from tokens where document_number = 0) and position > 1",
    )

    in_paris = set(told.ids[np.array(told.names) == "paris"].tolist())
    assert found.rows.tolist() == [
        row
        for row, name in enumerate(told.names)
        if name == "york" and told.ids[row] in in_paris and told.positions[row] > 1
    ]
    assert len(found) > 1


FOREIGN = [
    "select * from read_csv('/etc/passwd')",
    "select * from read_text('/etc/hostname')",
    "select * from '/etc/passwd'",
    "select * from glob('/*')",
    "select * from 'https://example.org/x.parquet'",
    "select * from read_parquet('{folder}/documents.parquet')",
]


@pytest.mark.parametrize("query", FOREIGN)
def test_files_and_the_network_are_out_of_reach(told, query):
    with pytest.raises(InvalidQuery, match="cannot be answered"):
        told.store().sql(query.replace("{folder}", str(told.folder)))


@pytest.mark.parametrize(
    "query",
    [
        "copy tokens to '{folder}/out.csv'",
        "attach '{folder}/out.db'",
        "create table t as select 1",
        "set enable_external_access = true",
        "install httpfs",
        "load httpfs",
        "pragma database_list",
        "delete from tokens",
        "export database '{folder}/out'",
    ],
)
def test_only_questions_are_taken(told, query):
    before = sorted(path.name for path in told.folder.iterdir())

    with pytest.raises(InvalidQuery, match=r"is no SELECT[\s\S]*hint: a store is only read"):
        told.store().sql(query.replace("{folder}", str(told.folder)))
    assert sorted(path.name for path in told.folder.iterdir()) == before


def test_python_variables_are_out_of_reach(told):
    secret = pa.table({"a": [1]})

    with pytest.raises(InvalidQuery, match="secret"):
        told.store().sql("select * from secret")
    assert secret.num_rows == 1


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("selct 1", r"The query is not valid SQL: syntax error at or near \"selct\""),
        ("select foo from tokens", r'"foo" not found[\s\S]*there are tokens\(row, id, document'),
        ("select * from tokns", r'Did you mean "tokens"'),
        ("select 1; select 2", "holds 2 statements"),
        ("", "holds 0 statements"),
        (None, r"The query is None, of type NoneType\nhint: give it as text"),
    ],
)
def test_sql_that_has_no_sense_is_refused_with_what_there_is(told, query, words):
    with pytest.raises(InvalidQuery, match=words):
        told.store().sql(query)


def test_what_fails_while_it_runs_is_refused_in_the_same_words(told):
    with pytest.raises(InvalidQuery, match="cannot be answered"):
        told.store().sql("select cast(split as int) as n from tokens").table()


@pytest.mark.parametrize(
    "where",
    [
        "nothing > 1",
        "1, 2",
        "row in (select row from rows)",
        "row in (select 1 from read_text('/etc/passwd'))",
        "cast(split as int) = 1",
    ],
)
def test_why_a_predicate_is_refused_names_the_stores_tables_and_no_others(told, where):
    with pytest.raises(InvalidQuery, match=r"hint: there are tokens\(row") as refused:
        told.store().find(where=where, text="Paris")

    message = str(refused.value)
    assert not re.search("SELECT row FROM|actlake_rows|·", message)
    assert set(re.findall(r"(\S+)\(", message.split("hint: ")[1])) == {
        "tokens",
        "documents",
        "vocabulary",
    }


@pytest.mark.parametrize("query", ["select id from tokens", "select split as row from tokens"])
def test_rows_need_row_numbers(told, query):
    with pytest.raises(InvalidQuery, match=r"hint: select tokens\.row"):
        told.store().sql(query).rows()


def test_damage_met_on_the_way_stays_damage(told):
    store = told.store()
    (told.folder / "rows.zarr/tokens/char/c.1").unlink()

    with pytest.raises(StoreDamaged, match="tokens/char"):
        store.sql("select sum(char) from tokens").table()


def test_without_duckdb_the_error_names_the_extra(told, monkeypatch):
    monkeypatch.setitem(sys.modules, "duckdb", None)

    with pytest.raises(
        MissingExtra, match=r'SQL over a store needs duckdb.*\n.*"actlake\[query\]"'
    ):
        told.store().sql("select 1")


def test_opening_a_store_and_finding_a_token_needs_no_optional_package(told):
    code = f"""
import sys
absent = {{"duckdb", "xarray", "pandas", "polars", "torch", "transformers", "ray", "wandb"}}
class Absent:
    def find_spec(name, *rest):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent)
from actlake.storage import open_store
store = open_store({str(told.folder)!r})
rows = store.find(text="Paris")
print(len(rows), rows.table().num_rows)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert done.stdout == "8 8\n"


def test_a_long_table_streams_through_a_query(told, monkeypatch):
    from actlake.storage.querying import relations

    monkeypatch.setattr(relations, "_ROWS_AT_ONCE", 16)
    store = told.store()
    seen = []
    take = store.tokens["id"].read

    def counted(start, stop, **how):
        seen.append(stop - start)
        return take(start, stop, **how)

    monkeypatch.setattr(store.tokens["id"], "read", counted)

    total = store.sql("select sum(id) as n from tokens").table()["n"].to_pylist()

    assert total == [int(told.ids.sum())]
    assert max(seen) == 16
    assert len(seen) == -(-len(told.ids) // 16)
