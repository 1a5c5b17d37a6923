"""docs/families.md: what it promises, that it does not shrink, and that it is what is measured."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from actlake.jobs.doctor.families import GOOD, parse, render
from actlake.platform.model_map.families import (
    FamilyFound,
    Verdict,
    measure_families,
    measure_family,
)

PAGE = Path(__file__).parents[2] / "docs" / "families.md"


def test_the_page_reads_no_fewer_families_than_it_did() -> None:
    """A family that is lost is mended or refused with a reason; only then may a number fall."""
    listed = parse(PAGE.read_text(encoding="utf-8"))

    assert sum(len(listed[verdict]) for verdict in GOOD) >= 172
    assert len(listed["whole"]) >= 129
    assert {"llama", "gpt2", "gemma3_text", "qwen3", "gpt_neox", "mistral"} <= set(listed["whole"])


def test_the_counts_of_the_page_are_those_of_its_tables() -> None:
    page = PAGE.read_text(encoding="utf-8")
    listed = parse(page)

    total = sum(map(len, listed.values()))
    good = sum(len(listed[verdict]) for verdict in GOOD)
    assert f"{good} of {total} are read" in " ".join(page.split())
    assert f"| Every site | {len(listed['whole'])} |" in page
    assert f"| Refused | {len(listed['refused'])} |" in page
    names = [name for names in listed.values() for name in names]
    assert len(names) == len(set(names))


def test_what_is_written_is_what_is_read_again() -> None:
    found = [
        FamilyFound(family="a", verdict="whole", points=("resid_pre", "resid_post", "mlp_out")),
        FamilyFound(family="b-c", verdict="stream", points=("resid_pre", "resid_post")),
        FamilyFound(family="d", verdict="refused", reason="it has x | y"),
        FamilyFound(family="e_f", verdict="broken", reason="wrong"),
    ]

    page = render(found)

    assert parse(page) == {
        "whole": ["a"], "stream": ["b-c"], "refused": ["d"], "unbuilt": [], "broken": ["e_f"],
    }  # fmt: skip
    assert "2 of 4 are read" in " ".join(page.split())
    assert "| a | no resid_mid, attn_out, mlp_in |" in page
    assert "| d | it has x \\| y |" in page


def test_families_with_one_reason_stand_together() -> None:
    reason = "A model of the family {!r} is not a decoder-only language model"
    found = [FamilyFound(family=name, verdict="refused", reason=reason.format(name))
             for name in ("x-y", "z_w", "v.2")]  # fmt: skip

    page = render(found)

    assert "| x-y, z_w, v.2 | is not a decoder-only language model |" in page
    assert parse(page)["refused"] == ["v.2", "x-y", "z_w"]


def test_an_encoder_is_refused_and_a_family_without_a_tiny_model_is_said() -> None:
    assert measure_family("marian").verdict == "refused"
    assert "not a decoder-only" in measure_family("marian").reason
    unknown = measure_family("no-such-family")
    assert unknown.verdict == "unbuilt"
    assert "transformers has no family 'no-such-family'" in unknown.reason


MEASURED: dict[str, tuple[Verdict, str]] = {
    "bamba": ("whole", ""),
    "camembert": ("stream", ""),  # its positions do not begin at 0
    "ctrl": ("stream", ""),  # writes into its embedding
    "dory": ("refused", "its 4 blocks do not run once each, in order, but 8 times"),
    "glm_moe_dsa": ("whole", ""),
    "hrm_text": ("refused", "has no list of its 32 blocks, each of which runs once"),
    "inkling_text": ("stream", ""),
    "longcat_flash": ("stream", ""),
    "mistral4": ("whole", ""),
    "modernbert-decoder": ("stream", ""),
    "molmo2": ("whole", ""),
    "openai-gpt": ("stream", ""),
    "pi0": ("refused", "is not a decoder-only language model"),
    "qwen2_5_omni": ("refused", "it loads more than its weights"),
    "qwen2_5_omni_thinker": ("whole", ""),
    "qwen2_5_vl": ("whole", ""),
    "qwen3_omni_moe_thinker": ("whole", ""),
    "xlnet": ("refused", "a second stream that does not see its own token"),
    "xlstm": ("stream", ""),
    "zamba": ("refused", "that depends on the text, beside the stream"),
    "zamba2": ("refused", "that depends on the text, beside the stream"),
}


@pytest.mark.parametrize("family", MEASURED)
def test_a_family_of_a_kind_of_its_own_is_read_right_or_refused_with_the_true_reason(
    family: str,
) -> None:
    verdict, reason = MEASURED[family]

    found = measure_family(family)

    assert (found.verdict, reason in found.reason) == (verdict, True), found
    assert family in parse(PAGE.read_text(encoding="utf-8"))[verdict]


def test_a_family_whose_process_dies_or_hangs_is_a_finding_and_the_next_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deadly.py").write_text("import os\ndef measure(family):\n    os._exit(1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    dead = list(
        measure_families(["gpt2", "qwen3"], measure=importlib.import_module("deadly").measure)
    )
    hanging = list(measure_families(["gpt2", "qwen3"], limit_s=0.001))

    assert [one.family for one in dead] == [one.family for one in hanging] == ["gpt2", "qwen3"]
    assert {one.reason for one in dead} == {"its process ended with status 1"}
    assert {one.reason for one in hanging} == {"does not end within 0 s"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_family_that_the_page_reads_is_still_read(tmp_path: Path) -> None:
    written = tmp_path / "families.md"

    subprocess.run([sys.executable, "-m", "actlake.jobs.doctor.families", str(written)], check=True)

    before, now = (parse(page.read_text(encoding="utf-8")) for page in (PAGE, written))
    lost = {verdict: set(before[verdict]) - set(now[verdict]) for verdict in GOOD}
    assert lost == {verdict: set() for verdict in GOOD}
