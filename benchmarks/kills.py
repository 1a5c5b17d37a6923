"""Kill and suspend the processes that make a store, hundreds of times, and compare what comes out.

Each trial runs one program on a small store: writing it, adding sites, repairing or exporting.
Its driver or one of its writers is killed with SIGKILL at a random moment, and it is started
again, and so on until it is done; or driver and writers are suspended with SIGSTOP until their
lease is over, another driver does the rest, and then they go on. The store must equal, byte for
byte, that of a run which nobody disturbed, and what was committed once must stay so. About five
minutes on 2 cores, with ``--long`` about twenty.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from kill_programs import PROGRAMS, Pace, prepare
from killing import Trial, contents
from measuring import tell

from actlake.storage.lease import GIVE_UP_S


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=220, help="at least so many")
    parser.add_argument("--stops", type=int, default=12, help="suspensions past the lease")
    parser.add_argument("--real-stops", type=int, default=3, help="with the lease of 30 s")
    parser.add_argument("--lease-s", type=float, default=1.0, help="of all others")
    parser.add_argument("--long", action="store_true", help="1,000 kills and 50 suspensions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pause-s", type=float, default=0.02, help="after each file")
    asked = parser.parse_args()
    if asked.long:
        asked.kills, asked.stops = 1000, 47
    rng = np.random.default_rng(asked.seed)
    started = time.monotonic()
    trials: list[Trial] = []
    unequal = 0
    with tempfile.TemporaryDirectory(prefix="actlake-kills-") as scratch:
        root = Path(scratch)
        quick = Pace(lease_s=asked.lease_s)
        Trial("write", root / "finished", quick).finish()
        expected = {}
        for name in PROGRAMS:
            folder = root / f"undisturbed-{name}"
            prepare(name, folder, rng)
            Trial(name, folder, quick).finish()
            expected[name] = contents(folder)

        def begin(name: str, lease_s: float) -> Trial:
            folder = root / f"store-{len(trials)}"
            prepare(name, folder, rng)
            trials.append(Trial(name, folder, Pace(asked.pause_s, lease_s)))
            return trials[-1]

        def total(what: str) -> int:
            return sum(getattr(trial, what) for trial in trials)

        leases = [GIVE_UP_S] * asked.real_stops + [asked.lease_s] * asked.stops
        while total("stops") < len(leases):
            trial = begin(_next(trials, rng), leases[total("stops")])
            trial.stop_once(rng)
            unequal += contents(trial.folder) != expected[trial.program]
        while total("kills") < asked.kills:
            trial = begin(_next(trials, rng), asked.lease_s)
            while not trial.kill_once(rng):
                if total("kills") == asked.kills:
                    trial.finish()
                    break
            unequal += contents(trial.folder) != expected[trial.program]
        figures = {
            "kills": total("kills"),
            "stopped_drivers": total("stops"),
            "refused_drivers": total("refused"),
            "interrupted_units": total("interrupted_units"),
            "stores": len(trials),
            "unequal_stores": unequal,
            "lost_units": total("lost_units"),
            "seconds": round(time.monotonic() - started, 1),
        }
    by_program = {name: sum(t.program == name for t in trials) for name in PROGRAMS}
    print(
        f"{figures['kills']} kills and {figures['stopped_drivers']} suspensions past the lease, of "
        f"which {figures['refused_drivers']} drivers went on and were refused, in {len(trials)} "
        f"stores ({', '.join(f'{name} {count}' for name, count in by_program.items())}). "
        f"{figures['interrupted_units']} units had a file and no record at the time. {unequal} "
        "stores differ from the undisturbed one in some byte of arrays, Parquet or schema; "
        f"{figures['lost_units']} committed units were lost. {figures['seconds']:.0f} s."
    )
    tell(figures)


def _next(trials: list[Trial], rng: np.random.Generator) -> str:
    """Half of the stores are written from nothing, the rest is shared by the other programs."""
    others = [name for name in PROGRAMS if name != "write"]
    return "write" if len(trials) % 2 == 0 else str(rng.choice(others))


if __name__ == "__main__":
    main()
