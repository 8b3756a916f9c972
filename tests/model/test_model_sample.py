"""The draw: its distribution, its cuts, and the log-probability it reports."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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


SEEN = [3, 7, 7, 11, 0, 41]


def theirs(logits: torch.Tensor, **asked: float) -> torch.Tensor:
    """What transformers' own processors, in the order of its `generate`, leave of logits [n, vocabulary]."""
    transformers = pytest.importorskip("transformers")
    ids = torch.tensor([SEEN] * len(logits))
    for name, make in (
        ("repetition_penalty", transformers.RepetitionPenaltyLogitsProcessor),
        ("temperature", transformers.TemperatureLogitsWarper),
        ("top_k", transformers.TopKLogitsWarper),
        ("top_p", transformers.TopPLogitsWarper),
        ("min_p", transformers.MinPLogitsWarper),
    ):
        if name in asked:
            logits = make(asked[name])(ids, logits)
    return logits


def ours(rows: int, **asked: float) -> dict[str, torch.Tensor]:
    """The same as a Draw for rows that are all alike."""
    how = {name: torch.full((rows,), value) for name, value in asked.items() if name != "temperature"}
    if "temperature" in asked:
        how["cold"] = torch.full((rows,), 1 / asked["temperature"])
    if "repetition_penalty" in asked:
        how["seen"] = torch.tensor([SEEN] * rows)
    return how


@pytest.mark.parametrize(
    "asked",
    [
        {"min_p": 0.1},
        {"min_p": 1.0},
        {"min_p": 0.05, "temperature": 0.6},
        {"min_p": 0.02, "temperature": 1.7, "top_k": 9},
        {"min_p": 0.1, "top_p": 0.8, "top_k": 20},
        {"repetition_penalty": 1.3, "top_k": 12},
        {"repetition_penalty": 0.7, "min_p": 0.05},
        {"repetition_penalty": 1.8, "temperature": 0.8, "top_p": 0.9, "min_p": 0.03},
    ],
    ids=lambda asked: "-".join(asked),
)
def test_the_distribution_is_that_of_transformers(asked: dict[str, float]) -> None:
    for seed in range(3):
        logits = torch.randn(1, 48, generator=torch.Generator().manual_seed(seed)) * 2
        expected = theirs(logits.clone(), **asked)[0].softmax(0)
        assert 0 < int((expected == 0).sum()) < 48
        found = drawn(logits[0], rows=6000, **ours(6000, **asked))
        assert torch.equal(found > 0, expected > 0)
        torch.testing.assert_close(found, expected, rtol=0, atol=4e-4)


def test_a_nucleus_is_of_what_top_k_leaves() -> None:
    logits = torch.linspace(0, -1, 300)
    asked = {"top_k": 100, "top_p": 0.6}  # more than the first look holds
    expected = theirs(logits[None], **asked)[0].softmax(0)
    torch.testing.assert_close(drawn(logits, rows=5000, **ours(5000, **asked)), expected, rtol=0, atol=4e-4)


def test_the_likeliest_after_a_penalty_is_that_of_transformers() -> None:
    logits = torch.randn(300, 48, generator=torch.Generator().manual_seed(1)) * 2
    asked = {"repetition_penalty": 1.5}
    ids, logprobs = draw(logits.clone(), Draw(None, **ours(300, **asked)))
    assert ids.tolist() == theirs(logits.clone(), **asked).argmax(-1).tolist()
    assert ids.tolist() != logits.argmax(-1).tolist()
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).gather(1, ids[:, None])[:, 0])  # penalty or not


def test_a_ban_far_above_the_rest_leaves_the_rest() -> None:
    logits = torch.tensor([[500.0, 0.0, 1.0]])  # beside the first, exp() of the others is 0
    banned = torch.tensor([[True, False, False]])
    assert draw(logits.clone(), Draw(None, banned=banned))[0].item() == 2
    drawn_ids = [draw(logits.clone(), Draw(torch.tensor([u]), banned=banned))[0].item() for u in (0.1, 0.9)]
    assert drawn_ids == [1, 2]
    held = draw(logits.clone(), Draw(torch.tensor([0.1]), min_p=torch.tensor([0.5]), banned=banned))
    assert held[0].item() == 2  # the likeliest of those that may be drawn is the measure


ROW = st.fixed_dictionaries(
    {
        "uniform": st.floats(0, 1, exclude_max=True, width=32),
        "temperature": st.sampled_from([1.0, 0.5, 2.0]),
        "greedy": st.booleans(),
        "top_k": st.sampled_from([0, 0, 1, 5, 70]),
        "top_p": st.sampled_from([1.0, 1.0, 0.5, 0.95]),
        "min_p": st.sampled_from([0.0, 0.0, 0.1, 1.0]),
        "repetition_penalty": st.sampled_from([1.0, 1.0, 1.3, 0.6]),
        "ban": st.booleans(),
        "seed": st.integers(0, 9),
    }
)


def batch(rows: list[dict[str, float]]) -> tuple[torch.Tensor, Draw]:
    """Logits [n, 100] and how to draw, with None for what no row asks for, as the engine gives it."""

    def column(name: str, neutral: float) -> torch.Tensor | None:
        values = [row[name] for row in rows]
        return None if all(value == neutral for value in values) else torch.tensor(values)

    sources = [torch.Generator().manual_seed(int(row["seed"])) for row in rows]
    logits = torch.stack([torch.randn(100, generator=source) * 3 for source in sources])
    seen = torch.stack([torch.randint(100, (40,), generator=source) for source in sources])
    banned = torch.stack([logits[i] == (logits[i].max() if row["ban"] else torch.inf) for i, row in enumerate(rows)])
    greedy = torch.tensor([row["greedy"] for row in rows])
    penalty = column("repetition_penalty", 1.0)
    return logits, Draw(
        uniforms=None if greedy.all() else torch.tensor([row["uniform"] for row in rows]),
        cold=torch.tensor([1 / row["temperature"] for row in rows]),
        greedy=greedy if greedy.any() and not greedy.all() else None,
        top_k=column("top_k", 0),
        top_p=column("top_p", 1.0),
        min_p=column("min_p", 0.0),
        repetition_penalty=penalty,
        seen=None if penalty is None else seen,
        banned=banned if banned.any() else None,
    )


@given(st.lists(ROW, min_size=1, max_size=5), st.randoms())
def test_a_row_is_drawn_as_if_alone_and_never_what_is_cut(rows: list[dict[str, float]], mixer: random.Random) -> None:
    logits, how = batch(rows)
    ids, logprobs = draw(logits.clone(), how)
    order = mixer.sample(range(len(rows)), len(rows))
    assert draw(*batch([rows[place] for place in order]))[0].tolist() == ids[order].tolist()
    for place, row in enumerate(rows):
        alone, one = batch([row])
        found, logprob = draw(alone.clone(), one)
        assert found.item() == ids[place].item()
        torch.testing.assert_close(logprob[0], logprobs[place], rtol=0, atol=1e-5)
        whole = (alone / row["temperature"]).log_softmax(-1)
        torch.testing.assert_close(logprob[0], whole[0, found[0]], rtol=0, atol=1e-5)
        scores, token = alone[0].clone(), int(found)
        for seen in set() if one.seen is None else set(one.seen[0].tolist()):
            scores[seen] *= row["repetition_penalty"] ** (1 if scores[seen] < 0 else -1)
        if row["ban"]:
            assert token != int(alone.argmax())
            scores[int(alone.argmax())] = -torch.inf
        shares = (scores / row["temperature"]).softmax(0)
        above = shares > shares[token]
        if row["greedy"]:
            assert not above.any()
            continue
        assert shares[token] >= row["min_p"] * shares.max() * (1 - 1e-5)
        if row["top_k"]:
            assert int(above.sum()) < row["top_k"]
            shares = shares / shares.topk(int(row["top_k"])).values.sum()
        assert float(shares[above].sum()) < row["top_p"] + 1e-5
