"""The draw: its distribution, its cuts, and the log-probability it reports."""

from __future__ import annotations

import torch

from tutelage.model.sample import Draw, draw

LOGITS = torch.tensor([2.0, 0.0, 1.0, -1.0, 0.5, -torch.inf])


def drawn(logits: torch.Tensor = LOGITS, rows: int = 20_000, **how: torch.Tensor | None) -> torch.Tensor:
    """Shares of each token over evenly spaced uniform numbers: the distribution itself, without sampling noise."""
    uniforms = (torch.arange(rows) + 0.5) / rows
    ids, _ = draw(logits.repeat(rows, 1), Draw(uniforms, **how))
    return torch.bincount(ids, minlength=len(logits)) / rows


def test_the_distribution_is_the_models() -> None:
    torch.testing.assert_close(drawn(), LOGITS.softmax(0), rtol=0, atol=2e-4)
    warm = torch.full((20_000,), 0.5)
    torch.testing.assert_close(drawn(cold=warm), (LOGITS * 0.5).softmax(0), rtol=0, atol=2e-4)


def test_top_k_and_top_p_cut_and_renormalise() -> None:
    whole = LOGITS.softmax(0)
    best = torch.tensor([True, False, True, False, True, False])  # three likeliest
    kept = torch.where(best, whole, 0) / whole[best].sum()
    torch.testing.assert_close(drawn(top_k=torch.full((20_000,), 3)), kept, rtol=0, atol=2e-4)
    share = torch.full((20_000,), float(whole[0] + whole[2] + 0.01))  # needs the third
    torch.testing.assert_close(drawn(top_p=share), kept, rtol=0, atol=2e-4)
    both = drawn(top_p=torch.full((20_000,), 0.5), top_k=torch.full((20_000,), 3))
    assert both[0] == 1  # 0.63 of the three


def test_a_nucleus_wider_than_the_first_look() -> None:
    logits = torch.linspace(0, -1, 500)
    whole = logits.softmax(0)
    count = int((whole.cumsum(0) < 0.9).sum()) + 1
    shares = drawn(logits, rows=5000, top_p=torch.full((5000,), 0.9))
    assert int(shares.nonzero().max()) + 1 == count > 64


def test_greedy_banned_and_mixed_rows() -> None:
    rows = LOGITS.repeat(4, 1)
    ids, logprobs = draw(rows.clone(), Draw(None))
    assert ids.tolist() == [0] * 4
    torch.testing.assert_close(logprobs, LOGITS.log_softmax(0)[[0] * 4])
    banned = torch.zeros(4, 6, dtype=torch.bool)
    banned[1, 0] = True
    assert draw(rows.clone(), Draw(None, banned=banned))[0].tolist() == [0, 2, 0, 0]
    uniforms, greedy = torch.tensor([0.999, 0.999, 0.0, 0.0]), torch.tensor([True, False, True, False])
    ids, logprobs = draw(rows.clone(), Draw(uniforms, greedy=greedy, banned=banned))
    assert ids.tolist() == [0, 4, 0, 0]
    torch.testing.assert_close(logprobs, LOGITS.log_softmax(0)[ids])  # of the whole distribution, ban or not


def test_the_ends_of_the_unit_interval_draw_possible_tokens() -> None:
    ids, logprobs = draw(LOGITS.repeat(2, 1), Draw(torch.tensor([0.0, 1 - 2**-24])))
    assert ids.tolist() == [0, 4]
    assert logprobs.isfinite().all()


def test_a_cut_never_draws_what_it_cut() -> None:
    draws = torch.Generator().manual_seed(0)
    logits = torch.randn(500, 300, generator=draws) * 3
    uniforms = torch.rand(500, generator=draws)
    top_k = torch.randint(1, 40, (500,), generator=draws)
    ids, _ = draw(logits.clone(), Draw(uniforms, top_k=top_k))
    rank = (logits > logits.gather(1, ids[:, None])).sum(1)
    assert (rank < top_k).all()
