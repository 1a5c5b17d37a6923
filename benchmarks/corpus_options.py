"""Laying out JSONL with all options on, against the plain layout of the same text.

100 MB of made-up text, in ten files, are tokenised with SmolLM2's tokenizer and laid out into a
sink that keeps nothing: once as they are, and once in another encoding, with the text inside a
column, kept columns under other names, segments, a sample (of all), deduplication, a most of
documents and of rows, and splits that follow from a column. The text is words of Python's own
documentation, drawn at random. Both give the same tokens; the two take turns file by file, and
which is first alternates.

    python benchmarks/corpus_options.py             4 minutes on 2 cores
    python benchmarks/corpus_options.py --mb 20     a fifth of it

The exit status is 1 where all options cost more than 1.2 times the plain layout.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
from measuring import Clock, shown, tell
from transformers import AutoTokenizer

from actlake.platform.corpus import CorpusConfig, Files, Sample, SplitByHash, lay_out
from actlake.platform.models import smollm2_folder
from actlake.storage import Context, Document

FILES = 10
MOST = 1.2
SPLITS = {"train": 0.9, "test": 0.1}


@dataclass
class Sink:
    """Counts the tokens and adds up their ids, so that two layouts can be compared."""

    documents: int = 0
    rows: int = 0
    sum_of_ids: int = 0
    splits: set[str] = field(default_factory=set)

    def add_document(self, document: Document) -> int:
        """Count it."""
        self.documents += 1
        return self.documents - 1

    def add_context(self, context: Context) -> None:
        """Count its rows."""
        self.rows += len(context)
        self.sum_of_ids += int(context.ids.sum(dtype=np.int64))
        self.splits.add(context.split)


def write_files(folder: Path, number: int, megabytes: float) -> tuple[Path, Path, int]:
    """The same documents plainly and with everything around them; and the bytes of the first."""
    rng = np.random.default_rng(number)
    words = [*" ".join(topics.values()).split(), *["café", "naïve"] * 50]
    plain, dressed = folder / f"{number}.jsonl", folder / f"{number}-dressed.jsonl"
    written = document = 0
    with plain.open("w", encoding="utf-8") as one, dressed.open("w", encoding="cp1252") as other:
        while written < megabytes * 1e6:
            drawn = rng.integers(0, len(words), rng.integers(20, 800)).tolist()
            text = f"{number} {document}: " + " ".join(words[place] for place in drawn) + "."
            name = f"{number}-{document}"
            line = json.dumps({"name": name, "text": text}, ensure_ascii=False) + "\n"
            written += one.write(line)
            around = {
                "meta": {"body": text, "by": {"author": name}, "length": len(text)},
                "name": name,
                "parts": [{"name": "head", "stop": 5}, {"name": "rest", "stop": len(text)}],
            }
            other.write(json.dumps(around, ensure_ascii=False) + "\n")
            document += 1
    return plain, dressed, written


def plainly(path: Path) -> CorpusConfig:
    """The layout without any option."""
    source = Files(path=str(path), id_column="name")
    return CorpusConfig(source=source, splits=SplitByHash(fractions=SPLITS))


def with_options(path: Path) -> CorpusConfig:
    """The same layout with all of them."""
    return CorpusConfig(
        source=Files(
            path=str(path),
            encoding="cp1252",
            text_column="meta.body",
            id_column="name",
            columns={"author": "meta.by.author", "characters": "meta.length"},
            segments_column="parts",
            undecodable="skip",
        ),
        splits=SplitByHash(fractions=SPLITS, by="author"),
        sample=Sample(fraction=1.0),
        deduplicate=True,
        max_documents=10**9,
        max_tokens=10**12,
    )


def main(arguments: Sequence[str]) -> int:
    """Measure; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mb", type=float, default=100.0, help="of text, in all")
    megabytes = parser.parse_args(arguments).mb / FILES
    Clock.start()
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder())
    spent = {"plain": np.zeros(2), "options": np.zeros(2)}
    ratios, written, rows = [], 0, 0
    with tempfile.TemporaryDirectory(prefix="corpus-options-") as scratch:
        for number in range(FILES):
            plain, dressed, size = write_files(Path(scratch), number, megabytes)
            configs = {"plain": plainly(plain), "options": with_options(dressed)}
            took, sinks = {}, {}
            for name in sorted(configs, reverse=number % 2 == 0):
                clock, sinks[name] = Clock(), Sink()
                lay_out(configs[name], tokenizer, sinks[name])
                took[name] = clock.stop()
                spent[name] += took[name]
            assert sinks["plain"] == sinks["options"], sinks
            ratios.append(took["options"] / took["plain"])
            written, rows = written + size, rows + sinks["plain"].rows
            print(f"file {number}: plain {shown(took['plain'])}, options {shown(took['options'])}",
                  file=sys.stderr, flush=True)  # fmt: skip
            plain.unlink()
            dressed.unlink()
    wall, cpu = (float(ratio) for ratio in spent["options"] / spent["plain"])
    tell(
        {
            "mb": round(written / 1e6, 1),
            "rows": rows,
            "plain_s": spent["plain"].round(1).tolist(),
            "options_s": spent["options"].round(1).tolist(),
            "ratio_wall": round(wall, 3),
            "ratio_cpu": round(cpu, 3),
            "median_ratio_cpu": round(float(np.median([ratio[1] for ratio in ratios])), 3),
        }
    )
    return 0 if cpu <= MOST else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
