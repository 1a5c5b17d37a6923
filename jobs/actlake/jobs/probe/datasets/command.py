"""``actlake probe data``: make labelled corpora, attach labels to a store.

actlake probe data place --out runs/data/place           # then harvest it
actlake probe data place --out runs/data/place --store runs/place
actlake probe data tokens --store runs/smollm2
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from actlake.jobs.probe.datasets.attaching import attach_tables
from actlake.jobs.probe.datasets.labelled_corpus import LabelledCorpus, read_corpus
from actlake.jobs.saying import say
from actlake.storage import open_store

_EPILOG = """\
examples:
  actlake probe data place --out runs/data/place --limit 4000
  actlake harvest --config examples/harvest_place.yaml
  actlake probe data place --out runs/data/place --store runs/place
  actlake probe --config examples/probe_place.yaml

  actlake probe data tokens --store actlake-demo/store"""


def main(arguments: Sequence[str]) -> int:
    """Run the command; its exit status."""
    options = _parser().parse_args(arguments)
    console = Console()
    if options.data == "tokens":
        return _tokens(options, console)
    folder = Path(options.out).expanduser()
    made = not (folder / "about.json").is_file()
    corpus = _made(options) if made else read_corpus(folder)
    if made:
        corpus.write(folder)
    _say(console, _described(corpus, folder, made))
    if options.store is not None:
        for attached in attach_tables(
            open_store(options.store), corpus.labels, replace=options.replace
        ):
            _say(console, str(attached))
    return 0


def _made(options: argparse.Namespace) -> LabelledCorpus:
    if options.data == "place":
        from actlake.jobs.probe.datasets.cities import places

        return places(min_population=options.min_population, limit=options.limit)
    from actlake.jobs.probe.datasets.rated_reviews import sentiment

    return sentiment(
        origins=options.origins, least_rating=options.least_rating, limit=options.limit
    )


def _described(corpus: LabelledCorpus, folder: Path, made: bool) -> str:
    said = [
        f"{folder}: {len(corpus.documents):,} documents, licence {corpus.about['licence']}"
        + ("" if made else "; was there already, with the options it was made with")
    ]
    said += [
        f"  {name.replace('_', ' ')}: {value:,}"
        for name, value in corpus.about.items()
        if isinstance(value, int)
    ]
    said += [f"  labels {one.name}: {len(one.table):,}" for one in corpus.labels]
    return "\n".join(said)


def _tokens(options: argparse.Namespace, console: Console) -> int:
    from actlake.jobs.probe.datasets.of_tokens import token_features

    store = open_store(options.store)
    tables = token_features(store, previous=options.previous, limit=options.limit)
    for attached in attach_tables(store, tables, replace=options.replace):
        _say(console, str(attached))
    return 0


def _say(console: Console, text: str) -> None:
    say(text, console)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="actlake probe data",
        description="Labelled text for probes, without a hub. A corpus is written to a folder, "
        "ready for `actlake harvest`; with --store its labels are attached to the store that was "
        "harvested from it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = parser.add_subparsers(dest="data", metavar="NAME", required=True)
    place = names.add_parser("place", help="cities: continent, country, latitude, longitude")
    place.add_argument(
        "--min-population", type=int, default=100_000, help="least inhabitants (100000)"
    )
    rated = names.add_parser("sentiment", help="sentences of reviews, rated by twenty people each")
    rated.add_argument(
        "--origins", type=_names, default=("movie", "amazon"), help="movie, amazon or both (both)"
    )
    rated.add_argument(
        "--least-rating", type=float, default=0.5, help="mean rating that is clear (0.5, of 4)"
    )
    tokens = names.add_parser("tokens", help="features of the tokens of any store, from its text")
    tokens.add_argument(
        "--previous", type=int, default=20, help="most frequent previous tokens to tell apart (20)"
    )
    for one in (place, rated):
        one.add_argument("--out", required=True, help="folder of the corpus")
        one.add_argument("--limit", type=int, help="documents at most")
    tokens.add_argument("--limit", type=int, help="rows of each table at most, spread evenly")
    for one in (place, rated, tokens):
        one.add_argument("--store", required=one is tokens, help="store to attach the labels to")
        one.add_argument(
            "--replace", action="store_true", help="attach anew what is attached already"
        )
    return parser


def _names(written: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in written.split(",") if name.strip())
