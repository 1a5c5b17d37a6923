"""How fast a store answers questions: indexes, text, predicates and SQL at ten million rows.

    python benchmarks/query.py --rows 10000000 --out query.json

The text is made of words whose frequencies follow Zipf's law, one token a word, so that every
answer can be checked against a scan of the arrays that made it; it is, and a wrong one ends the
run. Times are of one process on warm files, each the median of five but for what is done once.
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from measuring import tell
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from actlake.storage import (
    Context,
    Document,
    Lease,
    Provenance,
    StoreBuilder,
    StoreRequest,
    open_store,
    plan_geometry,
)
from actlake.storage.location import LocalFolder

WORDS = 50_000
DOCUMENT_ROWS = 500
CONTEXT_ROWS = 1000


def build(folder: Path, rows: int) -> np.ndarray[Any, Any]:
    """Lay out a store of `rows` tokens; the ids are returned."""
    rng = np.random.default_rng(0)
    ids = ((rng.zipf(1.15, rows) - 1) % WORDS).astype(np.int32)
    words = [f"w{number}" for number in range(WORDS)]
    widths = np.array([len(word) + 1 for word in words])
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="w0"))
    request = StoreRequest(
        layout="documents",
        context_length=CONTEXT_ROWS,
        splits=("train", "test"),
    )
    with (
        Lease.acquire(LocalFolder(folder)) as lease,
        StoreBuilder(
            lease,
            request,
            Provenance(model={"name": "none"}),
            tokenizer_files={"tokenizer.json": tokenizer.to_str().encode()},
        ) as builder,
    ):
        for number, start in enumerate(range(0, rows, DOCUMENT_ROWS)):
            own = ids[start : start + DOCUMENT_ROWS]
            split = "test" if number % 10 == 9 else "train"
            text = " ".join(words[token] for token in own.tolist())
            document = builder.add_document(
                Document(f"made/{number}", "made", split, text, {"kind": number % 7})
            )
            chars = np.concatenate([[0], np.cumsum(widths[own])[:-1]]).astype(np.int32)
            builder.add_context(Context(own, np.full(len(own), document), chars, split))
        builder.finish(partial(plan_geometry, row_bytes=2, context_length=CONTEXT_ROWS))
    return ids


def timed(deed: Callable[[], Any], *, times: int = 5) -> tuple[float, Any]:
    """Median seconds, and what the deed gave."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        result = deed()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), result


def check(found: Any, expected: np.ndarray[Any, Any], what: str) -> None:
    if not np.array_equal(np.asarray(found), expected):
        raise SystemExit(f"{what}: {len(found)} rows found, {len(expected)} are there")


def measure(folder: Path, ids: np.ndarray[Any, Any]) -> dict[str, float]:
    """Seconds of each question."""
    document = np.arange(len(ids)) // DOCUMENT_ROWS
    figures: dict[str, float] = {}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    store = open_store(folder)
    figures["first_token_s"], found = timed(lambda: store.find(token="w3"), times=1)
    check(found.rows, np.flatnonzero(ids == 3), "first token")
    figures["index_bytes"] = (folder / "index" / "tokens.index").stat().st_size
    figures["index_peak_rss_bytes"] = 1024 * (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    )
    for name, token in (("commonest", 0), ("rare", 20_000)):
        expected = np.flatnonzero(ids == token)
        figures[f"{name}_token_s"], found = timed(lambda t=token: store.find(token=f"w{t}"))
        check(found.rows, expected, f"{name} token")
        figures[f"{name}_token_rows"] = len(expected)
    figures["reopened_token_s"], found = timed(lambda: open_store(folder).find(token="w3"))
    figures["first_document_s"], _ = timed(lambda: store.find(document_number=3), times=1)
    figures["document_s"], found = timed(lambda: store.find(document_number=3))
    check(found.rows, np.flatnonzero(document == 3), "document")
    pair = np.flatnonzero((ids[:-1] == 5000) & (document[:-1] == document[1:])) + 1
    phrase = f"w5000 w{ids[pair[0]]} "
    inside = np.append(document[1:] == document[:-1], False)  # the blank is not at a text's end
    expected = pair[(ids[pair] == ids[pair[0]]) & inside[pair]]
    figures["text_s"], found = timed(lambda: store.find(text=phrase), times=1)
    check(found.rows, expected, "text")
    figures["regex_s"], found = timed(lambda: store.find(regex=rf"\b{phrase}"), times=1)
    check(found.rows, expected, "regex")
    figures["where_s"], found = timed(lambda: store.find(where="id = 3 and position < 9"), times=1)
    check(found.rows, np.flatnonzero((ids == 3) & (np.arange(len(ids)) % 500 < 9)), "where")
    figures["where_documents_s"], found = timed(
        lambda: store.find(token="w3", where="kind = 2 and position < 9")
    )
    kept = (ids == 3) & (np.arange(len(ids)) % 500 < 9) & (document % 7 == 2)
    check(found.rows, np.flatnonzero(kept), "token and where")
    figures["sql_join_s"], result = timed(
        lambda: store.sql(
            "select kind, count(*) n from tokens join documents using (document_number) group by 1"
        ).table(),
        times=1,
    )
    check(sorted(result["n"].to_pylist()), np.sort(np.bincount(document % 7)), "sql")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="actlake-query-") as scratch:
        folder = Path(scratch) / "store"
        ids = build(folder, options.rows)
        figures = {"rows": options.rows, **measure(folder, ids)}
    if options.out is not None:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")
    tell(figures)


if __name__ == "__main__":
    main()
