"""Who meets whom in which store."""

from collections.abc import Callable
from functools import partial
from typing import Any

from simulation import programs
from simulation.corpora import LATER, NEWS, OTHER, POEMS, SITES, Chain, Corpus
from simulation.processes import Process
from simulation.scenes import Scenario, Scene
from simulation.stage import FLAVOURS, STORE, Command, Flavour, Recipe, Stage

from actlake.storage.layout import MANIFEST
from actlake.storage.location import Location

PARENT = "parent"
ADDITION = "addition-{}"
RELEASED = {SITES[0]: [1]}
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


def append(corpus: Corpus) -> Callable[[Scene, Process], None]:
    """`actlake harvest --append`."""
    name = ADDITION.format(corpus.name)
    return lambda scene, process: programs.append(
        scene.location(process), scene.location(process, name)
    )


def append_to_parent(scene: Scene, process: Process) -> None:
    """The same, to the store that is exported."""
    programs.append(
        scene.location(process, PARENT), scene.location(process, ADDITION.format(LATER.name))
    )


def release(scene: Scene, process: Process) -> None:
    """A driver that gives the rows of a unit up."""
    programs.release(scene.location(process), RELEASED)


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


def with_additions(begin: Callable[[Stage], None], *corpora: Corpus) -> Callable[[Stage], None]:
    """As well, beside it, corpora to be appended to it."""

    def made(stage: Stage) -> None:
        for corpus in corpora:
            stage.do(
                lambda location, corpus=corpus: programs.lay_down(location, corpus, like=NEWS),  # type: ignore[misc]
                ADDITION.format(corpus.name),
            )
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


def _exported_later(stage: Stage) -> None:
    with_additions(with_parent(nothing), LATER)(stage)
    stage.do(partial(append_again(LATER), stage), PARENT)
    stage.do(lambda location: _export_again(stage, location))


def _appended(*corpora: Corpus) -> Recipe:
    """A store of `NEWS`, to which these were appended, one after the other."""

    def make(stage: Stage) -> None:
        with_additions(filled(), *corpora)(stage)
        for corpus in corpora:
            stage.do(partial(append_again(corpus), stage))

    chain = Chain((NEWS, *corpora))
    return Recipe(chain.name, chain, make)


def append_again(corpus: Corpus) -> Command:
    """`actlake harvest --append`, given as a command again."""
    name = ADDITION.format(corpus.name)
    return lambda stage, location: programs.append(location, stage.seams.location(name, None))


def _append_to_parent_again(stage: Stage, location: Location) -> None:
    parent = stage.seams.location(PARENT, None)
    programs.append(parent, stage.seams.location(ADDITION.format(LATER.name), None))


def release_again(stage: Stage, location: Location) -> None:
    """A release, given as a command again."""
    programs.release(location, RELEASED)


def _released(stage: Stage) -> None:
    filled()(stage)
    stage.do(partial(release_again, stage))


HARVESTED = _harvested(NEWS)
APPENDED = _appended(LATER)
APPENDED_BOTH = tuple(
    _appended(*corpora) for corpora in ((LATER,), (OTHER,), (LATER, OTHER), (OTHER, LATER))
)
AFTER_RELEASE = Recipe("released", NEWS, _released)
EXPORTED = Recipe("exported", NEWS, _exported)
EXPORTED_LATER = Recipe("exported later", Chain((NEWS, LATER), is_exported=True), _exported_later)


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
        of("two-append", with_additions(filled(), LATER), A=append(LATER), B=append(LATER), R=read,
           again=(append_again(LATER),), recipes=(HARVESTED, APPENDED)),
        of("two-append-others", with_additions(filled(), LATER, OTHER),
           A=append(LATER), B=append(OTHER), again=(append_again(LATER), append_again(OTHER)),
           recipes=(HARVESTED, *APPENDED_BOTH), may_be_refused=stays),
        of("append-while-read", with_additions(filled(), LATER),
           A=append(LATER), R=read, V=verify, again=(append_again(LATER),),
           recipes=(HARVESTED, APPENDED)),
        of("append-and-a-site", with_additions(filled(sites=SITES[:1]), LATER),
           A=append(LATER), B=harvest(), again=(*HARVEST_AGAIN, append_again(LATER)),
           recipes=(HARVESTED, APPENDED)),
        of("append-to-what-is-exported", with_additions(with_parent(nothing), LATER),
           A=append_to_parent, B=export, again=(_append_to_parent_again, _export_again),
           recipes=(EXPORTED, EXPORTED_LATER)),
        of("release", filled(), A=release, B=harvest(), R=read, V=verify,
           again=(*HARVEST_AGAIN, release_again), recipes=(AFTER_RELEASE,)),
        of("release-unfinished", filled(most_units=1), A=release, B=harvest(), R=read,
           again=(*HARVEST_AGAIN, release_again), recipes=(AFTER_RELEASE,)),
        of("export-over-a-store", with_parent(changed(MANIFEST, gone)), A=export, B=harvest()),
    ]  # fmt: skip


ALL = {str(scenario): scenario for flavour in FLAVOURS for scenario in scenarios(flavour)}
