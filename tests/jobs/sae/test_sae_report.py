"""Pages of latents and the report: what they show is true, and text in it stays text."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from actlake.jobs.sae.contexts import (
    ActiveContext,
    LatentPage,
    Piece,
    choose_latents,
    latent_pages,
    readable,
)
from actlake.jobs.sae.evaluation import evaluate_rows
from actlake.jobs.sae.in_model import evaluate_in_model
from actlake.jobs.sae.latent_cards import latent_card
from actlake.jobs.sae.pictures import front
from actlake.jobs.sae.promoted import Promoted, TokenLogit, direct_logits, promoted_tokens
from actlake.jobs.sae.report import RunFacts, draw, write_report
from actlake.jobs.sae.trained import TrainedSAE
from actlake.jobs.whole_contexts import contexts_of_split
from actlake.platform.models import load_head, resolve_model
from actlake.platform.models.config import ModelConfig
from actlake.platform.tracking.memory import MemoryTracker
from actlake.storage import Site

SITE = Site(1)


class Dimensions:
    """Latent i is how far dimension i is above a threshold, and never fires for the last one."""

    d_sae = 16

    def encode(self, x: Tensor) -> Tensor:
        f = (x - 0.5).relu()
        f[:, -1] = 0
        return f

    def reconstruct(self, x: Tensor, f: Tensor) -> Tensor:
        return f

    def __call__(self, x: Tensor) -> Tensor:
        return self.encode(x)


@pytest.fixture(scope="module")
def pages(spoken) -> list[LatentPage]:
    head = load_head(resolve_model(ModelConfig(name=str(spoken.model_folder), device="cpu")))
    directions = torch.eye(16)
    return latent_pages(
        Dimensions(), spoken.store(), [SITE], [0, 3, 9, 15], contexts=4, before=6, after=3,
        directions=directions, head=head,
    )  # fmt: skip


def test_the_strongest_contexts_are_those_found_by_looking_at_every_row(spoken, pages) -> None:
    here = spoken.contexts("test")
    f = np.maximum(spoken.acts[SITE] - 0.5, 0).reshape(*spoken.ids.shape, 16)[here]
    f = f * spoken.allowed[here][..., None]

    for page in pages[:3]:
        mine = f[..., page.latent]
        best = np.argsort(-mine.max(1), kind="stable")[:4]
        assert [c.value for c in page.contexts] == pytest.approx(mine.max(1)[best].tolist())
        rows = [int(here[c]) * 24 + int(mine[c].argmax()) for c in best]
        assert [c.row for c in page.contexts] == rows
        assert page.density == pytest.approx((mine > 0)[spoken.allowed[here]].mean())
        assert page.counts.sum() == (mine > 0).sum()
        assert page.max_active == pytest.approx(mine.max())
        assert page.mean_active == pytest.approx(mine[mine > 0].mean())


def test_a_context_shows_the_text_around_the_row_and_the_value_of_each_token(spoken, pages) -> None:
    store = spoken.store()

    for page in pages[:3]:
        for shown in page.contexts:
            place, first = shown.row % 24, shown.row - shown.row % 24
            start, stop = first + max(0, place - 6), first + min(24, place + 4)
            assert "".join(piece.text for piece in shown.pieces) == store.text(start, stop)
            values = np.maximum(spoken.acts[SITE][start:stop, page.latent] - 0.5, 0)
            values[~spoken.allowed.reshape(-1)[start:stop]] = 0
            assert max(piece.value for piece in shown.pieces) == pytest.approx(values.max())
            assert shown.pieces[shown.peak].value == pytest.approx(shown.value)
            assert shown.document == f"d{spoken.documents.reshape(-1)[shown.row]:03d}"


def test_rows_that_were_trained_on_though_excluded_by_default_are_searched_too(spoken) -> None:
    (page,) = latent_pages(Dimensions(), spoken.store(), [SITE], [3], contexts=1, excluded=True)

    here = spoken.contexts("test")
    f = spoken.acts[SITE].reshape(*spoken.ids.shape, 16)[here][..., 3] > 0.5
    assert not spoken.allowed[here][f].all()
    assert page.density == pytest.approx(f.mean())


def test_a_latent_that_never_fires_has_a_page_without_contexts(pages) -> None:
    dead = pages[3]

    assert (dead.latent, dead.density, dead.contexts) == (15, 0.0, ())
    assert "Latent 15" in latent_card(dead)


@settings(deadline=None)
@given(data=st.data())
def test_pieces_cover_all_tokens_and_join_to_the_whole_text(spoken, data) -> None:
    tokenizer = spoken.store().tokenizer
    size = tokenizer.get_vocab_size()
    ids = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=12))

    spans = readable(tokenizer, ids)

    assert [a for a, _, _ in spans] == [0, *(b for _, b, _ in spans[:-1])]
    assert spans[-1][1] == len(ids)
    assert "".join(t for _, _, t in spans) == tokenizer.decode(ids, skip_special_tokens=False)


def test_tokens_that_share_a_character_are_one_piece(spoken) -> None:
    tokenizer = spoken.store().tokenizer
    ids = [tokenizer.token_to_id(piece) for piece in ("ð", "Ł", "Ļ", "Ĥ", "a")]  # bytes of 🙂

    assert readable(tokenizer, ids) == [(0, 4, "🙂"), (4, 5, "a")]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_promoted_tokens_are_the_decoder_row_through_norm_and_unembedding(
    spoken, tmp_path, family
) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

    d = torch.randn(5, 16, generator=torch.Generator().manual_seed(2)) * 3
    if family == "llama":
        folder, model = spoken.model_folder, LlamaForCausalLM.from_pretrained(spoken.model_folder)
        norm, unit = model.model.norm, d
    else:
        torch.manual_seed(0)
        folder = tmp_path / "gpt2"
        model = GPT2LMHeadModel(
            GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=330, n_positions=32)
        )
        norm, unit = model.transformer.ln_f, d - d.mean(1, keepdim=True)
        with torch.no_grad():
            norm.weight.uniform_(0.5, 2)
            norm.bias.normal_()
        model.save_pretrained(folder)
    head = load_head(resolve_model(ModelConfig(name=str(folder), device="cpu")))

    found = direct_logits(head, d)
    named = promoted_tokens(head, spoken.store().lookup.vocabulary, d, number=3)

    unit = unit / unit.norm(dim=1, keepdim=True)
    with torch.no_grad():
        wanted = (unit * norm.weight) @ model.get_output_embeddings().weight.T
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    vocabulary = spoken.store().lookup.vocabulary
    for row, promoted in enumerate(named):
        order = wanted[row].argsort(descending=True).tolist()
        assert [t.text for t in promoted.promoted] == [vocabulary.text(i) for i in order[:3]]
        assert promoted.suppressed[0].logit == pytest.approx(wanted[row].min().item(), rel=1e-4)
        assert promoted.suppressed[0].text == vocabulary.text(order[-1])


@settings(deadline=None)
@given(
    density=st.lists(st.sampled_from([0.0, 1e-5, 1e-3, 0.1, 1.0]), max_size=40),
    number=st.integers(0, 12),
)
def test_latents_are_chosen_from_the_rarest_to_the_most_frequent_and_never_dead(
    density, number
) -> None:
    density = np.array(density)

    chosen = choose_latents(density, number)

    alive = np.flatnonzero(density > 0)
    assert set(chosen) <= set(alive.tolist())
    assert len(chosen) == len(set(chosen)) == min(number, len(alive))
    assert chosen == sorted(chosen)
    if len(chosen) > 1:
        assert {density[alive].min(), density[alive].max()} <= set(density[chosen])


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=12))
def test_no_point_of_the_front_is_beaten_by_another_sae(points) -> None:
    found = front(points, higher_is_better=True)

    unbeaten = {
        (x, y)
        for x, y in points
        if not any((a <= x and b > y) or (a < x and b >= y) for a, b in points)
    }
    if found is None:
        assert len(unbeaten) < 2
    else:
        assert set(zip(*map(list, found), strict=True)) == unbeaten


def test_the_darkest_token_is_the_most_active_one_and_text_is_escaped() -> None:
    pieces = (Piece("<b>", 0.0), Piece(" a&b\n", 1.0), Piece("</script>", 4.0))
    context = ActiveContext(12, '"doc"', 4.0, pieces, 2)
    tokens = Promoted((TokenLogit("<i>", 1.5),), ())
    latent = LatentPage(7, 0.5, 4.0, 2.0, np.array([1, 2]), np.array([0, 2, 4]), (context,), tokens)

    card = latent_card(latent)

    shares = [float(found) for found in re.findall(r"rgba\(var\(--mark\),([\d.]+)\)", card)]
    assert shares == [pytest.approx(0.26), pytest.approx(0.80)]
    for text in ("&lt;b&gt;", " a&amp;b↵", "&lt;/script&gt;", "&lt;i&gt;", "&quot;doc&quot;"):
        assert text in card
    assert "<i>" not in card
    assert "</script>" not in card


@pytest.fixture(scope="module")
def runs(spoken, pages) -> list[RunFacts]:
    rows = torch.from_numpy(spoken.acts[SITE])
    contexts = contexts_of_split(spoken.store(), "test", 4)
    facts = []
    for number, k in enumerate((2, 4, 8)):
        weights = torch.randn(16, 40, generator=torch.Generator().manual_seed(number))
        sae = TrainedSAE(
            {"architecture": "standard" if k == 8 else "topk", "k": k},
            {"W_enc": weights, "b_enc": torch.zeros(40), "W_dec": weights.T / 16,
             "b_dec": torch.zeros(16)},
        )  # fmt: skip
        steps = np.arange(1, 6) * 100.0
        facts.append(
            RunFacts(
                name=f"resid_post.1-topk <{k}>",
                architecture="topk",
                sites="resid_post.1",
                written=("resid_post.1",),
                d_in=16,
                d_sae=40,
                options={"k": k, "learning_rate": 1e-3},
                rows_trained=500,
                history={"loss": (steps, 9 / steps), "fvu": (steps, 1 / steps)},
                rows=evaluate_rows(sae, [rows]),
                in_model={str(SITE): evaluate_in_model(sae, spoken.chain, contexts, [SITE])},
                latents=pages if number == 0 else (),
                lineage={"store": "runs/<store>", "commit": "abc123"},
            )
        )
    return facts


def test_the_report_of_a_sweep_holds_every_sae_its_lineage_and_its_numbers(runs, tmp_path) -> None:
    tracker = MemoryTracker()

    path = write_report(
        tmp_path, "A sweep & more", runs, tracker=tracker, about={"model": "<tiny>"},
        noted=["few rows <here>"], step=5,
    )  # fmt: skip

    page = path.read_text()
    pictures = {one.stem for one in (tmp_path / "pictures").glob("*.png")}
    assert pictures >= {
        "loss",
        "fvu",
        "density",
        "pareto_fvu_resid_post.1",
        "pareto_ce_recovered_resid_post.1",
    }
    # One bar says nothing: of topk, every row has k.
    assert [n for n in pictures if n.startswith("activity_")] == ["activity_resid_post.1-topk_8_"]
    assert page.count("data:image/png;base64,") == len(pictures) == len(tracker.images)
    assert [(name, step) for name, step, _ in tracker.pages] == [("report", 5)]
    for run in runs:
        assert run.rows is not None
        (in_model,) = run.in_model.values()
        assert page.count(f"topk &lt;{run.options['k']}&gt;") >= 4
        assert f"{run.rows.fvu:.4f}" in page
        assert f"{in_model.ce_recovered.value:,.4f} ± " in page
    assert page.count("runs/&lt;store&gt;") == page.count("abc123") == 3
    assert "<th>k</th>" in page
    assert "<th>learning_rate</th>" not in page  # all have the same
    assert "few rows &lt;here&gt;" in page
    assert not re.search(r"https?://|<link|<script src", page)
    assert page.count("<script") == 1  # ours; that of the corpus is text
    assert "&lt;script&gt;alert" in re.sub("<[^>]*>", "", page)


def test_saes_are_compared_with_others_of_the_same_site_only(runs, monkeypatch) -> None:
    drawn: dict[str, set[float]] = {}

    def note(groups, *, title, y, higher_is_better) -> bytes:
        drawn[title] = {value for points in groups.values() for _, _, value in points}
        return b""

    monkeypatch.setattr("actlake.jobs.sae.pictures.pareto", note)
    elsewhere = [replace(run, sites="resid_post.2", written=("resid_post.2",)) for run in runs[:2]]
    one_more = replace(runs[0], sites="mlp_in.1 → mlp_out.1", written=("mlp_in.1 → mlp_out.1",))

    draw([*runs, *elsewhere, one_more])

    fvu = [run.rows.fvu for run in runs]
    assert drawn["resid_post.1: FVU against sparsity"] == set(fvu)
    assert drawn["resid_post.2: FVU against sparsity"] == set(fvu[:2])
    assert not any("mlp" in title for title in drawn)  # one point is no comparison


def test_a_report_of_one_failed_sae_says_how_it_ended(tmp_path: Path) -> None:
    run = RunFacts(
        name="a", architecture="topk", sites="resid_post.1", written=("resid_post.1",),
        d_in=16, d_sae=40, state="loss was NaN at step 7",
    )  # fmt: skip

    page = write_report(tmp_path, "One", [run], tracker=MemoryTracker()).read_text()

    assert "loss was NaN at step 7" in page
    assert "data:image" not in page
