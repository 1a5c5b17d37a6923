"""What is asked of conversations: segments, probes of one side's tokens, pairs, given ids.

200 dialogues of a question and a reply are made by this script, two of each question: one reply is
friendly, the other curt. They are written in SmolLM2's chat template and harvested. Then

    segments   the assistant's tokens are found by `where`, and are what it said
    probes     friendly or curt? of assistant tokens (`rows.where`) and, as a control, of the user's
               tokens, of which none has seen the reply: at the majority's share, by causality
    pairs      `store.paired`: at the last token of the question both activations are the same to
               the bit, at the last token of the reply they are not
    ids        the same tokens given as ids (`ids_column`) give the same tokens and activations

    python benchmarks/chat.py         3 minutes on 2 cores, 1 more the first time for the model

The exit status is 1 where one of these does not hold.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from measuring import Clock, tell

from actlake.jobs.harvest import HarvestConfig, harvest
from actlake.jobs.probe import ProbeConfig, RowsConfig, StoreSplits, TaskConfig, train_probes
from actlake.platform.corpus import CorpusConfig, Documents, Files, SplitByHash
from actlake.platform.models import ModelConfig, smollm2_folder
from actlake.platform.tracking import TrackingConfig
from actlake.storage import ActivationStore, Site, open_store

QUESTIONS = 100
SITES = (Site(3), Site(6))
SPLITS = {"train": 0.6, "validate": 0.15, "test": 0.25}
THINGS = ("lamps", "boats", "apples", "chairs", "ropes", "bells", "maps", "kettles")
PLACES = ("the harbour", "the attic", "the market", "the old mill", "a shed", "the station")
FRIENDLY = (
    "Of course, happy to help! There should be {n} {thing} in {place}.",
    "What a lovely question, thank you. I would gladly say {n} {thing}.",
    "Sure thing, my friend: {n} {thing}, and do ask me again any time!",
)
CURT = (
    "{n}. Count the {thing} yourself next time.",
    "Obviously {n} {thing}. Stop asking.",
    "I told you before, {n} {thing}. That is all.",
)
ASSISTANT, USER = "segment = 'assistant'", "segment = 'user'"


def dialogues() -> Iterator[dict[str, object]]:
    """Two of each question, which differ in the reply only."""
    for pair in range(QUESTIONS):
        thing, place = THINGS[pair % 8], PLACES[pair % 6]
        words = {"thing": thing, "place": place, "n": 3 + pair % 17}
        question = f"I saw {words['n'] - 2} {thing} in {place} and then two more. How many is that?"
        for condition, replies in (("friendly", FRIENDLY), ("curt", CURT)):
            reply = replies[(pair // 3) % 3].format(**words)
            yield {
                "name": f"{pair}-{condition}",
                "pair": pair,
                "condition": condition,
                "messages": [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": reply},
                ],
            }


def given_ids(store: ActivationStore) -> Iterator[dict[str, object]]:
    """The documents of a store as the ids of their tokens."""
    columns = store.documents(["id", "pair", "condition"]).to_pylist()
    for number, document in enumerate(columns):
        rows = store.lookup.documents.rows(number)
        ids = store.tokens["id"].take(rows).tolist()
        yield {**document, "name": document["id"], "tokens": ids}


def harvested(folder: Path, rows: Iterator[dict[str, object]], **source: object) -> ActivationStore:
    """The store of a corpus, a document a context, the members of a pair in one split."""
    folder.mkdir()
    path = folder / "chat.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = harvest(
        HarvestConfig(
            store=str(folder / "store"),
            model=ModelConfig(name=str(smollm2_folder()), device="cpu"),
            sites=SITES,
            corpus=CorpusConfig(
                source=Files(
                    path=str(path), id_column="name", columns=("pair", "condition"), **source
                ),
                layout=Documents(),
                splits=SplitByHash(fractions=SPLITS, by="pair"),
            ),
            tracking=TrackingConfig(wandb="disabled"),
        )
    )
    return open_store(result.store)


def accuracy(store: ActivationStore, out: Path, where: str) -> float:
    """Of a probe for the condition on test tokens of one side, at the last site."""
    result = train_probes(
        ProbeConfig(
            store=store.url,
            out=str(out),
            tasks=(TaskConfig(column="condition"),),
            sites=(str(SITES[-1]),),
            probes=("logistic",),
            controls=(),
            learning_curve=(),
            splits=StoreSplits(validate="validate"),
            rows=RowsConfig(where=where),
            tracking=TrackingConfig(wandb="disabled"),
        )
    )
    return float(result.metrics["condition/token/logistic/best_accuracy"])


def main() -> int:
    """Make, harvest, ask; the exit status."""
    Clock.start()
    with tempfile.TemporaryDirectory(prefix="chat-") as scratch:
        clock = Clock()
        store = harvested(Path(scratch) / "chat", dialogues(), messages_column="messages")
        seconds = clock.stop()
        said = {side: store.find(where=where) for side, where in (("a", ASSISTANT), ("u", USER))}
        every = list(dialogues())
        written = "".join(row["messages"][1]["content"] for row in every)  # type: ignore[index]
        ids = store.tokens["id"].take(said["a"].rows).tolist()
        right = store.tokenizer.decode(ids, skip_special_tokens=False) == written

        scores = {
            side: accuracy(store, Path(scratch) / side, where)
            for side, where in (("assistant", ASSISTANT), ("user", USER))
        }
        how = {"on": "pair", "column": "condition", "of": ("friendly", "curt")}
        before = store.paired(**how, where=USER)
        after = store.paired(**how, where=ASSISTANT)
        differ = {
            name: float(np.abs(np.subtract(*(a.astype(np.float32) for a in pairs.acts(SITES[-1]))))
                        .max(axis=1).min())
            for name, pairs in (("before", before), ("after", after))
        }  # fmt: skip
        same_before = all(np.array_equal(*before.acts(site)) for site in SITES)

        again = harvested(Path(scratch) / "ids", given_ids(store), ids_column="tokens")
        same_ids = all(
            np.array_equal(store.tokens[name][:], again.tokens[name][:])
            for name in ("id", "document", "position")
        )
        same_acts = all(np.array_equal(store[site][:], again[site][:]) for site in SITES)

    found = {
        "dialogues": len(every), "rows": len(store), "assistant_rows": len(said["a"]),
        "user_rows": len(said["u"]), "segments_right": right, "pairs": len(after),
        "accuracy_assistant": scores["assistant"], "accuracy_user": scores["user"],
        "same_before_the_reply": same_before, "least_difference_after": differ["after"],
        "ids_same_tokens": same_ids, "ids_same_activations": same_acts,
        "harvest_s": round(float(seconds[0]), 1),
    }  # fmt: skip
    tell(found)
    holds = (
        right and same_before and differ["after"] > 0 and same_ids and same_acts
        and scores["assistant"] > 0.8 > 0.7 > scores["user"]
    )  # fmt: skip
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
