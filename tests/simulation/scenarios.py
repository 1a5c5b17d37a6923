"""Who meets whom in which store."""

from collections.abc import Callable
from typing import Any

from simulation import programs
from simulation.corpora import NEWS, POEMS, SITES, Corpus
from simulation.processes import Process
from simulation.scenes import Scenario, Scene
from simulation.stage import FLAVOURS, STORE, Command, Flavour, Recipe, Stage

from actlake.storage.layout import MANIFEST
from actlake.storage.location import Location

PARENT = "parent"
A_SHARD = f"rows.zarr/acts/{SITES[0]}/c.1.0"

# What processes do.


def harvest(corpus: Corpus = NEWS, **how: Any) -> Callable[[Scene, Process], None]:
    """A driver."""
    return lambda scene, process: programs.harvest(
        scene.location(process), corpus, on_token=scene.tokens.append, **how
    )


def read(scene: Scene, process: Process) -> None:
    """A reader, who remembers what it was told."""
    scene.tell(process, programs.read(scene.location(process)))


def verify(scene: Scene, process: Process) -> programs.Verified:
    """`actlake verify`."""
    return programs.check(scene.location(process))


def repair(scene: Scene, process: Process) -> None:
    """`actlake verify --repair`."""
    programs.repair(scene.location(process))


def export(scene: Scene, process: Process) -> None:
    """`actlake export`."""
    programs.export(scene.location(process, PARENT), scene.location(process))


def late_worker(spoil: float) -> Callable[[Scene, Process], None]:
    """A worker of the first driver, which comes when it comes."""

    def work(scene: Scene, process: Process) -> None:
        if scene.tokens:
            programs.write_late(scene.location(process), scene.tokens[0], spoil=spoil)

    return work


# What they find.


def nothing(stage: Stage) -> None:
    """No store yet."""


def filled(**how: Any) -> Callable[[Stage], None]:
    """A store that a driver has left."""
    return lambda stage: stage.do(lambda location: programs.harvest(location, NEWS, **how))


def with_parent(begin: Callable[[Stage], None]) -> Callable[[Stage], None]:
    """As well, beside it, a finished store to export."""

    def made(stage: Stage) -> None:
        stage.do(lambda location: programs.harvest(location, NEWS), PARENT)
        begin(stage)

    return made


def changed(key: str, change: Callable[[bytes], bytes | None]) -> Callable[[Stage], None]:
    """A finished store of which one file has changed, or is gone."""

    def made(stage: Stage) -> None:
        filled()(stage)
        root = stage.seams.root(STORE)
        data = stage.seams.storage.contents(root)[key]
        stage.seams.storage.put(f"{root}/{key}", change(data))

    return made


def flipped(data: bytes) -> bytes:
    """One bit is another."""
    return data[:-1] + bytes([data[-1] ^ 1])


def gone(data: bytes) -> None:
    """There is no such file any more."""


# In what it may end.


def _harvested(corpus: Corpus) -> Recipe:
    return Recipe(
        corpus.name,
        corpus,
        lambda stage: stage.do(lambda location: programs.harvest(location, corpus)),
    )


def _export_again(stage: Stage, location: Location) -> None:
    programs.export(stage.seams.location(PARENT, None), location)


def _exported(stage: Stage) -> None:
    with_parent(nothing)(stage)
    stage.do(lambda location: _export_again(stage, location))


HARVESTED = _harvested(NEWS)
EXPORTED = Recipe("exported", NEWS, _exported)


def again(*corpora: Corpus) -> tuple[Command, ...]:
    """Harvests of these corpora, given as commands again."""
    return tuple(
        lambda stage, location, corpus=corpus: programs.harvest(location, corpus)  # type: ignore[misc]
        for corpus in corpora
    )


HARVEST_AGAIN = again(NEWS)


def repair_again(stage: Stage, location: Location) -> None:
    """`actlake verify --repair`, given as a command again."""
    programs.repair(location)


def scenarios(flavour: Flavour) -> list[Scenario]:
    """All of them, in a folder or in a bucket."""

    def of(
        name: str, begin: Callable[[Stage], None],
        *, again: Any = HARVEST_AGAIN, recipes: Any = (HARVESTED,), is_damaged: bool = False,
        may_be_refused: bool = False, **processes: Any,
    ) -> Scenario:  # fmt: skip
        return Scenario(
            name=name, flavour=flavour, begin=begin, processes=processes, again=again,
            recipes=recipes, is_damaged=is_damaged, may_be_refused=may_be_refused,
        )  # fmt: skip

    # In a bucket nothing can be moved away: a unit of other bits, or files of two unfinished
    # corpora, stay until somebody removes them, and are refused until then.
    stays = flavour == "bucket"
    spoil = 0.0 if stays else 1.0
    return [
        of("two-begin", nothing, A=harvest(), B=harvest()),
        of("two-corpora", nothing, A=harvest(NEWS), B=harvest(POEMS),
           again=again(NEWS, POEMS), recipes=(HARVESTED, _harvested(POEMS)), may_be_refused=stays),
        of("two-go-on", filled(most_units=1), A=harvest(), B=harvest(), R=read),
        of("two-merge", filled(merges=False), A=harvest(), B=harvest(), R=read),
        of("site-is-added", filled(sites=SITES[:1]), A=harvest(), B=harvest(), R=read),
        of("late-worker", filled(sites=(), most_units=0),
           A=harvest(), B=harvest(), W=late_worker(spoil)),
        of("read-while-filled", filled(sites=(), most_units=0), A=harvest(), R=read, V=verify),
        of("manifest-lost", changed(MANIFEST, gone), A=harvest(), R=read),
        of("rows-lost", changed(A_SHARD, gone), A=harvest(), B=harvest(), is_damaged=True),
        of("repair", changed(A_SHARD, flipped), A=repair, B=repair, R=read,
           again=(repair_again,), is_damaged=True),
        of("export", with_parent(nothing), A=export, B=export, R=read,
           again=(_export_again,), recipes=(EXPORTED,)),
        of("export-over-a-store", with_parent(changed(MANIFEST, gone)), A=export, B=harvest()),
    ]  # fmt: skip


ALL = {str(scenario): scenario for flavour in FLAVOURS for scenario in scenarios(flavour)}
