"""Kill the processes that fill a store, hundreds of times, and compare what comes out.

Each trial fills a small store with a driver and two writers, kills one of them with SIGKILL at
a random moment, starts again, and so on until the store is full. The result must equal, byte
for byte, the store of a run that nobody disturbed. About five minutes on 2 cores.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import killing
import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=220, help="at least so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pause-s", type=float, default=0.02, help="after each file")
    asked = parser.parse_args()
    rng = np.random.default_rng(asked.seed)
    started = time.monotonic()
    kills = interrupted = interrupting = stores = unequal = 0
    with tempfile.TemporaryDirectory(prefix="actlake-kills-") as scratch:
        undisturbed = Path(scratch) / "undisturbed"
        killing.finish(undisturbed)
        expected = killing.contents(undisturbed)
        while kills < asked.kills:
            folder = Path(scratch) / f"store-{stores}"
            finished = False
            while not finished and kills < asked.kills:
                killed = killing.kill_once(folder, rng, pause_s=asked.pause_s)
                finished = killed.finished
                kills += not finished
                interrupted += killed.interrupted_units
                interrupting += killed.interrupted_units > 0
            if not finished:
                killing.finish(folder)
            stores += 1
            unequal += killing.contents(folder) != expected
    seconds = time.monotonic() - started
    print(
        f"{kills} kills (of the driver, in a quarter of them first of a writer) in {stores} "
        f"stores; {interrupting} kills came between a unit's first file and its ledger record, and "
        f"interrupted {interrupted} units in all. {unequal} of {stores} stores differ from the "
        f"undisturbed one in some byte of arrays, Parquet or schema. {seconds:.0f} s."
    )
    figures = {
        "kills": kills,
        "interrupted_units": interrupted,
        "interrupting_kills": interrupting,
        "stores": stores,
        "unequal_stores": unequal,
        "seconds": round(seconds, 1),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
