import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import FrozenInstanceError, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NewType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actlake.platform import config as package
from actlake.platform.config import (
    ConfigError,
    from_dict,
    read_command,
    read_config,
    register_written,
    to_dict,
    to_yaml,
)
from actlake.platform.config.yaml_text import parse_yaml
from actlake.platform.tracking import TrackingConfig
from actlake.storage.errors import ActlakeError
from actlake.storage.sites import Site


@dataclass(frozen=True, kw_only=True)
class TextFiles:
    """Documents from text files."""

    files: tuple[str, ...]
    """Paths or globs."""

    max_tokens: int | None = None
    """How many tokens to take; null is all of them."""


@dataclass(frozen=True, kw_only=True)
class DemoText:
    """The text that comes with Python."""

    demo: Literal[True] = True


@dataclass(frozen=True, kw_only=True)
class TopK:
    """Keep the k largest latents of each token."""

    kind: Literal["topk"] = "topk"
    k: int = 32
    """How many; 100 % at most."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k is {self.k}, and a token needs a latent\nhint: 32 is usual")


@dataclass(frozen=True, kw_only=True)
class BatchTopK:
    """Keep the k largest of a token on average."""

    kind: Literal["batchtopk"] = "batchtopk"
    k: int = 32


@dataclass(frozen=True, kw_only=True)
class JumpReLU:
    """Keep what exceeds a learned threshold."""

    bandwidth: float = 1e-3
    """Width of the ``kernel``."""


@dataclass(frozen=True, kw_only=True)
class SAE:
    """What a dictionary is."""

    d_model: int
    """Width of the residual stream it reads."""

    activation: TopK | BatchTopK | JumpReLU = field(default_factory=TopK)
    """Which latents survive."""


Rows = NewType("Rows", int)


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train dictionaries from a store."""

    sites: tuple[Site, ...]
    """Where in the model."""

    corpus: TextFiles | DemoText
    """The text."""

    out: Path
    """Where the result goes."""

    sae: SAE = SAE(d_model=576)
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """Type of what is stored."""

    learning_rate: float = 1e-4
    steps: Annotated[int, "positive"] = 100
    batch: Rows = Rows(4096)
    name: str = "first"
    """Shown in reports."""

    resume: bool = False
    options: Mapping[str, str] = field(default_factory=dict)
    splits: dict[str, float] = field(default_factory=lambda: {"train": 0.9, "test": 0.1})
    every: int | Literal["epoch"] = 100
    pairs: tuple[tuple[Site, Site], ...] = ()
    betas: tuple[float, float] = (0.9, 0.999)
    note: str | None = None
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


GIVEN: dict[str, Any] = {
    "sites": ["resid_post.6", "attn_out.3"],
    "corpus": {"files": ["a.txt"]},
    "out": "runs/a",
}
MADE = Train(
    sites=(Site(6), Site(3, "attn_out")), corpus=TextFiles(files=("a.txt",)), out=Path("runs/a")
)


def made(**more: Any) -> Train:
    return from_dict(Train, GIVEN | more)


def refusal(**more: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        from_dict(Train, GIVEN | more)
    return str(caught.value)


# from_dict


def test_a_mapping_becomes_a_frozen_dataclass_with_defaults():
    config = from_dict(Train, GIVEN)

    assert config == MADE
    with pytest.raises(FrozenInstanceError):
        config.steps = 3  # type: ignore[misc]


def test_errors_are_actlakes_and_value_errors():
    assert issubclass(ConfigError, ActlakeError)
    assert issubclass(ConfigError, ValueError)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"stepps": 3}, "  stepps: there is no such key in Train\n  hint: did you mean 'steps'?"),
        (
            {"sae": {"d_modell": 3}},
            "  sae.d_modell: there is no such key in SAE\n  hint: did you mean 'd_model'?",
        ),
        (
            {"corpus": {"files": ["a"], "max_token": 3}},
            "corpus.max_token: there is no such key in TextFiles\n"
            "  hint: did you mean 'max_tokens'?",
        ),
        (
            {"sae": {"activation": {"bandwith": 1}}},
            "sae.activation: keys bandwith do not tell which is meant: TopK (kind, k); BatchTopK "
            "(kind, k); JumpReLU (bandwidth)\n  hint: did you mean 'bandwidth'?",
        ),
        (
            {"sae": {"activation": {"kind": "batchtopk", "kk": 1}}},
            "sae.activation.kk: there is no such key in BatchTopK",
        ),
        ({"dtype": "float61"}, "dtype: 'float61' is not one of float16, bfloat16, float32\n"
                               "  hint: did you mean 'float16'?"),
        ({"steps": "many"}, "steps: 'many' is not a whole number"),
        ({"steps": 1.5}, "steps: 1.5 is not a whole number"),
        ({"steps": True}, "steps: true is not a whole number"),
        ({"batch": None}, "batch: null is not a whole number"),
        ({"learning_rate": "fast"}, "learning_rate: 'fast' is not a number"),
        ({"resume": "maybe"}, "resume: 'maybe' is not true or false"),
        ({"resume": 1}, "resume: 1 is not true or false"),
        ({"name": 123}, "name: 123 is not text\n  hint: in YAML, put text that looks like "
                        "something else in quotes: '123'"),
        ({"sites": "resid_post.6"}, "sites: 'resid_post.6' is not a list, each a site such as "
                                    "resid_post.6\n  hint: write [resid_post.6]"),
        ({"sites": ["resid_post.-6"]}, "sites[0]: Cannot read the site 'resid_post.-6'\n  hint: a "
                                       "site is written POINT.LAYER, such as resid_post.6"),
        ({"out": 3}, "out: 3 is not a path"),
        ({"options": {"a": 1}}, "options.a: 1 is not text"),
        ({"betas": [0.9]}, "betas: [0.9] is not a list of 2: a number, a number"),
        ({"pairs": [["resid_post.1", 2]]}, "pairs[0][1]: 2 is not a site such as resid_post.6"),
        ({"every": "week"}, "every: 'week' is not a whole number or epoch"),
        ({"corpus": {"files": "a.txt"}}, "corpus.files: 'a.txt' is not a list, each text"),
        ({"corpus": "a.txt"}, "corpus: 'a.txt' is not TextFiles (files, max_tokens) or DemoText"),
        ({"sae": None}, "sae: null is not SAE (d_model, activation)"),
        ({"sae": {"activation": {"k": 3}}}, "sae.activation: keys k do not tell which is meant: "
         "TopK (kind, k); BatchTopK (kind, k); JumpReLU (bandwidth)\n  hint: give those of one"),
        ({"sae": {"activation": {"kind": "topk", "k": 0}}},
         "sae.activation: k is 0, and a token needs a latent\n  hint: 32 is usual"),
        ({"corpus": {"max_tokens": 3}}, "corpus.files: not given, and required: a list, each text"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_key_value_and_what_is_right(given: dict, words: str):
    assert words in refusal(**given)


def test_everything_that_is_missing_is_listed():
    with pytest.raises(ConfigError) as caught:
        from_dict(Train, {"sae": {"activation": {"bandwidth": 1}}})

    assert str(caught.value) == (
        "Cannot read the configuration\n"
        "  sites: not given, and required: a list, each a site such as resid_post.6\n"
        "  corpus: not given, and required: TextFiles (files, max_tokens) or DemoText (demo)\n"
        "  out: not given, and required: a path"
    )


def test_all_mistakes_are_named_at_once():
    message = refusal(stepps=1, steps="x", corpus={"files": ["a"], "max_tokens": "all"})

    for key in ("stepps", "steps", "corpus.max_tokens"):
        assert f"\n  {key}: " in message


def test_whole_floats_are_whole_numbers_and_integers_are_numbers():
    config = made(steps=1e6, learning_rate=1)

    assert (config.steps, type(config.steps)) == (1_000_000, int)
    assert (config.learning_rate, type(config.learning_rate)) == (1.0, float)


@pytest.mark.parametrize(
    ("keys", "activation"),
    [
        ({"kind": "batchtopk"}, BatchTopK()),
        ({"kind": "topk", "k": 5}, TopK(k=5)),
        ({"bandwidth": 1}, JumpReLU(bandwidth=1)),
    ],
)
def test_the_keys_tell_which_member_of_a_union_is_meant(keys: dict, activation: object):
    assert made(sae={"d_model": 8, "activation": keys}).sae.activation == activation


def test_what_is_not_given_comes_from_the_default_of_the_field():
    assert made(sae={"activation": {"bandwidth": 1}}).sae.d_model == 576


def test_what_is_not_given_comes_from_a_recipe():
    recipe = replace(MADE, steps=7, sae=SAE(d_model=64, activation=TopK(k=5)))

    config = from_dict(Train, {"name": "x", "sae": {"d_model": 32}}, base=recipe)

    assert config == replace(recipe, name="x", sae=replace(recipe.sae, d_model=32))


def test_finished_objects_may_be_given_by_python_callers():
    config = made(sites=[Site(1)], sae=SAE(d_model=3), out=Path("x"))

    assert (config.sites, config.sae, config.out) == ((Site(1),), SAE(d_model=3), Path("x"))


# There and back

words = st.text(max_size=8) | st.sampled_from(
    ["null", "true", "no", "1", "1e-4", "1.5", "~", "", " a ", "a: b", "#", "2024-01-01", "1:30",
     "0x1f", ".nan", "- x", "'", '"', "a\nb", "{", "=", "<<", "010", "\x85", "\ufeff"]
)  # fmt: skip
sites = st.builds(Site, st.integers(0, 99), st.sampled_from(["resid_pre", "mlp_out"]))
numbers = st.floats(allow_nan=False) | st.sampled_from([1e-05, 1e22, -0.0, math.inf, -math.inf])
configs = st.builds(
    Train,
    sites=st.lists(sites, max_size=3).map(tuple),
    corpus=st.builds(
        TextFiles,
        files=st.lists(words, max_size=3).map(tuple),
        max_tokens=st.none() | st.integers(),
    )
    | st.just(DemoText()),
    out=words.map(Path),
    sae=st.builds(
        SAE,
        d_model=st.integers(),
        activation=st.builds(TopK, k=st.integers(min_value=1))
        | st.builds(BatchTopK, k=st.integers())
        | st.builds(JumpReLU, bandwidth=numbers),
    ),
    learning_rate=numbers,
    name=words,
    resume=st.booleans(),
    options=st.dictionaries(words, words, max_size=3),
    splits=st.dictionaries(words, numbers, max_size=3),
    every=st.integers() | st.just("epoch"),
    pairs=st.lists(st.tuples(sites, sites), max_size=2).map(tuple),
    note=st.none() | words,
)


@given(config=configs)
@settings(deadline=None)
def test_a_configuration_is_the_same_after_a_dict(config: Train):
    assert from_dict(Train, to_dict(config)) == config


@given(config=configs)
@settings(deadline=None)
def test_a_dict_is_json_and_stable(config: Train):
    text = json.dumps(to_dict(config))

    assert json.dumps(to_dict(from_dict(Train, json.loads(text)))) == text


@given(config=configs)
@settings(deadline=None)
def test_a_configuration_is_the_same_after_yaml(config: Train):
    for docs in (False, True):
        text = to_yaml(config, docs=docs)
        assert from_dict(Train, parse_yaml(text, name="x")[0]) == config


def test_a_value_that_cannot_be_written_is_named():
    @dataclass(frozen=True)
    class Odd:
        inside: Any

    with pytest.raises(ConfigError, match=r"1j, a complex, cannot be written to a file"):
        to_dict(Odd(inside={"a": [1j]}))


def test_a_type_that_is_written_as_text_can_be_made_known():
    class Version(tuple[int, ...]):
        @classmethod
        def parse(cls, text: str) -> "Version":
            return cls(int(part) for part in text.split("."))

        def __str__(self) -> str:
            return ".".join(map(str, self))

    @dataclass(frozen=True)
    class Needs:
        version: Version

    register_written(Version, Version.parse, "a version such as 1.2")

    config = from_dict(Needs, {"version": "1.2"})

    assert config.version == Version((1, 2))
    assert to_dict(config) == {"version": "1.2"}
    with pytest.raises(ConfigError, match=r"version: 3 is not a version such as 1\.2"):
        from_dict(Needs, {"version": 3})


# Files and command line

FILE = """\
sites: [resid_post.6, attn_out.3]
corpus:
  files: [a.txt]
  max_tokens: 1_000
out: runs/a
learning_rate: 1e-3
sae:
  d_model: 64
  activation: {bandwidth: 0.5}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "train.yaml"
    path.write_text(FILE)
    return path


def read(*argv: str | Path) -> Train:
    return read_config(Train, [str(word) for word in argv], command="actlake train")


def refused(*argv: str | Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read(*argv)
    return str(caught.value)


FROM_FILE = replace(
    MADE,
    corpus=TextFiles(files=("a.txt",), max_tokens=1000),
    learning_rate=1e-3,
    sae=SAE(d_model=64, activation=JumpReLU(bandwidth=0.5)),
)


def test_a_file_is_read(file: Path):
    assert read("--config", file) == read(f"--config={file}") == FROM_FILE


@pytest.mark.parametrize(
    ("argv", "changes"),
    [
        (["--steps", "7"], {"steps": 7}),
        (["--steps=1e3"], {"steps": 1000}),
        (["--learning-rate", "3e-5"], {"learning_rate": 3e-5}),
        (["--name", "123"], {"name": "123"}),
        (["--name", "null"], {"name": "null"}),
        (["--name", "[a]"], {"name": "[a]"}),
        (["--name="], {"name": ""}),
        (["--name=--x"], {"name": "--x"}),
        (["--note", "null"], {"note": None}),
        (["--note", "12"], {"note": "12"}),
        (["--resume"], {"resume": True}),
        (["--resume", "--steps", "3"], {"resume": True, "steps": 3}),
        (["--resume", "false"], {"resume": False}),
        (["--every", "epoch"], {"every": "epoch"}),
        (["--every", "-5"], {"every": -5}),
        (["--sites", "resid_post.1,mlp_in.2"], {"sites": (Site(1), Site(2, "mlp_in"))}),
        (["--sites", "[resid_post.1]"], {"sites": (Site(1),)}),
        (["--sites", ""], {"sites": ()}),
        (["--betas", "0.5,0.6"], {"betas": (0.5, 0.6)}),
        (["--pairs", "[[resid_post.1, resid_post.2]]"], {"pairs": ((Site(1), Site(2)),)}),
        (["--options.key", "7"], {"options": {"key": "7"}}),
        (["--options", "{a: 1, b: yes}"], {"options": {"a": "1", "b": "yes"}}),
        (["--corpus.max-tokens", "5"],
         {"corpus": TextFiles(files=("a.txt",), max_tokens=5)}),
        (["--corpus.max-tokens", "null"], {"corpus": TextFiles(files=("a.txt",))}),
        (["--corpus", "{demo: true}"], {"corpus": DemoText()}),
        (["--corpus", "{files: [b], max_tokens: 1}", "--corpus.max_tokens", "2"],
         {"corpus": TextFiles(files=("b",), max_tokens=2)}),
        (["--sae.activation.bandwidth", "2"],
         {"sae": SAE(d_model=64, activation=JumpReLU(bandwidth=2))}),
        (["--sae.activation", "{kind: topk, k: 3}"],
         {"sae": SAE(d_model=64, activation=TopK(k=3))}),
    ],
)  # fmt: skip
def test_the_command_line_wins_over_the_file(argv: list[str], changes: dict, file: Path):
    assert read("--config", file, *argv) == replace(FROM_FILE, **changes)
    assert read(*argv, "--config", file) == replace(FROM_FILE, **changes)


def test_a_later_file_is_read_over_an_earlier_one(file: Path, tmp_path: Path):
    (tmp_path / "more.yaml").write_text("steps: 3\ncorpus: {max_tokens: 9}\n")

    config = read("--config", file, "--config", tmp_path / "more.yaml")

    assert config == replace(FROM_FILE, steps=3, corpus=TextFiles(files=("a.txt",), max_tokens=9))


def test_no_file_is_needed():
    argv = ["--sites", "resid_post.6,attn_out.3", "--corpus.files", "a.txt", "--out", "runs/a"]

    assert read(*argv) == MADE


def test_a_recipe_is_overridden_by_files_and_command_line(file: Path):
    recipe = replace(MADE, steps=5, batch=Rows(8))

    config = read_config(
        Train, ["--config", str(file), "--steps", "6"], command="actlake train", base=recipe
    )

    assert (config.steps, config.batch, config.learning_rate) == (6, 8, 1e-3)


def test_a_wrong_key_is_named_with_its_file_line_and_nearest_key(file: Path):
    file.write_text(FILE.replace("max_tokens", "max_token"))

    assert refused("--config", file) == (
        "Cannot read the configuration of `actlake train`\n"
        f"  corpus.max_token ({file}, line 4): there is no such key in TextFiles\n"
        "  hint: did you mean 'max_tokens'?"
    )


def test_a_wrong_value_is_named_with_its_line(file: Path):
    file.write_text(FILE.replace("attn_out.3", "attn_out.03").replace("1e-3", "fast"))

    message = refused("--config", file)

    assert f"sites[1] ({file}, line 1): Cannot read the site 'attn_out.03'" in message
    assert f"learning_rate ({file}, line 6): 'fast' is not a number" in message


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--stepps", "3"], "stepps (command line): there is no such key in Train\n"
                            "  hint: did you mean 'steps'?"),
        (["--steps", "x"], "steps (command line): 'x' is not a whole number"),
        (["--sae.activation.k", "3"], "line 9, and command line): keys bandwidth, k do not tell"),
        (["--steps"], "`actlake train`: argument --steps: expected one argument\n"
                      "hint: files are given with --config FILE, values with --KEY VALUE, or with "
                      "--KEY=VALUE where they begin with -"),
        (["--config"], "`actlake train`: argument --config: expected one argument"),
        (["train.yaml"], "`actlake train`: does not know what to do with 'train.yaml'\n"
                         "hint: files are given with --config FILE"),
        (["-n", "3"], "does not know what to do with '-n'"),
        (["--"], "does not know what to do with '--'"),
        (["--steps.more", "3"], 'steps (command line): {"more": "3"} is not a whole number'),
        (["--.x", "3"], "does not know what to do with '--.x'"),
        (["--corpus", "{a: [}"], "corpus (command line): '{a: [}' is not TextFiles (files"),
        (["--print-config=yes"], "argument --print-config: ignored explicit argument 'yes'"),
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_refused_in_words(argv: list[str], words: str, file: Path):
    assert words in refused("--config", file, *argv)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1, 2", "is not YAML"),
        ("steps: 1\nsteps: 2\n", "line 2: steps is given twice, first on line 1\nhint: remove"),
        ("sae:\n  d_model: 1\n  d_model: 2\n", "line 3: sae.d_model is given twice, first on"),
        ("- a\n- b\n", "holds no keys\nhint: write lines such as `key: value`"),
        ("just words", "holds no keys"),
        ("out: !!python/object/apply:os.system [ls]", "is not YAML"),
        ("a: 1\n---\nb: 2\n", "is not YAML"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_by_name(text: str, words: str, tmp_path: Path):
    path = tmp_path / "bad.yaml"
    path.write_text(text)

    message = refused("--config", path)

    assert str(path) in message
    assert words in message


def test_an_empty_file_is_a_file_without_keys(file: Path, tmp_path: Path):
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")

    assert read("--config", file, "--config", tmp_path / "empty.yaml") == FROM_FILE


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path):
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9\n")

    assert "No such file or directory\nhint: paths are relative to the current folder" in refused(
        "--config", tmp_path / "none.yaml"
    )
    assert "latin.yaml is not UTF-8" in refused("--config", tmp_path / "latin.yaml")
    assert "Is a directory" in refused("--config", tmp_path)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("1E5", 1e5), ("no", "no"), ("on", "on"), ("1:30", "1:30"), ("010", "010"),
     ("2024-01-01", "2024-01-01"), ("1_000", 1000), ("true", True), ("~", None), ("", None),
     ("-.inf", -math.inf), ("1.", 1.0), (".5", 0.5), ("'1'", "1"), ("1e", "1e"), ("-3", -3)],
)  # fmt: skip
def test_yaml_is_read_as_a_person_expects(text: str, value: object):
    content = parse_yaml(f"x: {text}", name="x")[0]

    assert content == {"x": value}
    assert type(content["x"]) is type(value)


def test_anchors_and_merged_keys_work():
    content = parse_yaml("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  y: 3\n", name="x")[0]

    assert content["b"] == {"x": 1, "y": 3}


# What is printed


def printed(capsys: pytest.CaptureFixture[str], *argv: str | Path, **more: Any) -> str:
    with pytest.raises(SystemExit) as caught:
        read_command(Train, [str(w) for w in argv], command="actlake train", **more)
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_help_shows_every_field_with_type_default_and_docs_and_the_examples(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "100")

    text = printed(
        capsys,
        "--help",
        examples=["actlake train --config examples/train.yaml --steps 10"],
        flags={"plan": "Print the plan and stop."},
    )

    assert text.startswith("usage: actlake train [--config FILE] [--KEY VALUE ...] [--plan]\n")
    for words in (
        "Train dictionaries from a store.",
        "  --plan\n      Print the plan and stop.",
        "  --sites (a list, each a site such as resid_post.6; required)\n      Where in the model.",
        "  --corpus (TextFiles or DemoText; required)\n      The text.",
        "  --sae.activation.k (a whole number; default: 32)\n      How many; 100 % at most.",
        "corpus as TextFiles:\n  Documents from text files.",
        "  --corpus.max_tokens (a whole number or null; default: null)\n      How many tokens",
        "  --dtype (one of float16, bfloat16, float32; default: float16)",
        "  --sae.d_model (a whole number; default: 576)",
        "sae.activation as BatchTopK:\n  Keep the k largest of a token on average. Also: kind "
        "(batchtopk; default: batchtopk), k",
        "  --sae.activation.bandwidth (a number; default: 0.001)\n      Width of the kernel.",
        "  --learning_rate (a number; default: 0.0001)",
        "  --tracking.wandb (one of auto, online, offline, disabled; default: auto)",
        "examples:\n\n  actlake train --config examples/train.yaml --steps 10\n",
    ):
        assert words in text


@pytest.mark.parametrize("argv", [["-h"], ["--steps", "x", "--help"], ["--resume", "-h"]])
def test_help_is_given_whatever_else_is_asked(
    argv: Sequence[str], capsys: pytest.CaptureFixture[str]
):
    assert printed(capsys, *argv).startswith("usage: actlake train")


def test_print_config_prints_what_reads_back_with_its_docs(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    text = printed(capsys, "--config", file, "--name", "no", "--print-config")

    (tmp_path / "printed.yaml").write_text(text)
    assert read("--config", tmp_path / "printed.yaml") == replace(FROM_FILE, name="no")
    assert "# Where in the model.\nsites: [resid_post.6, attn_out.3]\n" in text
    assert "  # Width of the residual stream it reads.\n  d_model: 64\n" in text


def test_print_config_of_a_wrong_configuration_says_what_is_wrong():
    assert "sites: not given, and required" in refused("--print-config")


def test_flags_are_no_part_of_the_configuration(file: Path):
    config, flags = read_command(
        Train,
        ["--plan", "--config", str(file), "--dry-run"],
        command="actlake train",
        flags={"plan": "", "dry-run": "", "repair": ""},
    )

    assert config == FROM_FILE
    assert flags == {"plan", "dry-run"}


def test_what_the_package_shows_is_there():
    assert all(hasattr(package, name) for name in package.__all__)


@dataclass(frozen=True, kw_only=True)
class Checked:
    """Something that is checked unless it is said otherwise."""

    check: bool = True
    """Look first."""

    quiet: bool = False
    """Say nothing."""


def test_what_is_true_by_default_has_a_word_for_the_other(capsys):
    def read(*words):
        return read_config(Checked, words, command="look")

    assert read() == read("--no-check", "--check") == Checked()
    assert read("--no-check") == read("--check", "--no-check") == Checked(check=False)
    with pytest.raises(ConfigError, match="no_quiet"):
        read("--no-quiet")
    with pytest.raises(SystemExit):
        read("--no-check", "--print-config")
    assert "check: false\n" in capsys.readouterr().out
