"""The width of models whose width is known: hand-made ones, every family, random logits that have none."""

import numpy as np
import pytest
import torch

from mechinterp.stealing import Provider, Terms, by_top, collect, random_prompts, singular_values, width
from mechinterp.stealing.api import Dropped
from tests import families

VOCABULARY, D = 60, 12


def logits(n: int = 40, d: int = D, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(n, d, generator=generator), torch.randn(d, VOCABULARY, generator=generator)
    return a.double() @ b.double()


def served(terms: Terms, seed: int = 0) -> Provider:
    weights = torch.randn(VOCABULARY, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def answer(prompt) -> torch.Tensor:
        generator = torch.Generator().manual_seed(int(sum(t * 61**i for i, t in enumerate(prompt)) % 2**40))
        return weights @ torch.randn(D, generator=generator, dtype=torch.float64)

    return Provider(answer, terms)


PROMPTS = random_prompts(40, VOCABULARY)
TOKENS = list(range(VOCABULARY))


@pytest.mark.parametrize("d", [2, 7, 12, 30])
def test_the_rank_of_a_product(d: int) -> None:
    found = width(logits(d=d))
    assert found.size == d == np.linalg.matrix_rank(logits(d=d).numpy())
    assert found.ratio > 1e6


def test_singular_values_are_numpys() -> None:
    x = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(singular_values(x), np.linalg.svd(x.double().numpy())[1], rtol=1e-10)


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (50, 50), (200, 210)])
def test_random_logits_have_no_width(shape) -> None:
    for seed in range(5):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        with pytest.raises(ValueError, match=rf"at least as wide as the {min(shape)} .* below {2 * min(shape)}"):
            width(x)


def test_too_few_prompts_show_no_gap() -> None:
    with pytest.raises(ValueError, match="more of both are needed"):
        width(logits(n=10))
    with pytest.raises(ValueError, match="8 prompts and tokens"):
        width(logits(n=4))
    with pytest.raises(ValueError, match="finite"):
        width(logits() * torch.nan)


@pytest.mark.parametrize(
    ("terms", "recover"),
    [(Terms(top=None), None), (Terms(top=4), lambda ask, prompt, tokens: by_top(ask, prompt, tokens).logits)],
)
def test_an_api_gives_its_width_away(terms: Terms, recover) -> None:
    ask = served(terms)
    found = collect(ask, PROMPTS, TOKENS, recover=recover)
    assert width(found).size == D
    assert found.shape == (40, VOCABULARY)
    assert found.mean(1).abs().max() < 1e-12
    assert ask.bill.queries == (40 if recover is None else 40 * (1 + -(-(VOCABULARY - 1) // 3)))


def test_the_widened_model_looks_wider_and_noise_hides_the_gap() -> None:
    assert width(collect(served(Terms(top=None, widen=(5, 1.0))), PROMPTS, TOKENS)).size == D + 5
    with pytest.raises(ValueError, match="noise or rounding"):
        width(collect(served(Terms(top=None, noise=3.0)), PROMPTS, TOKENS))
    with pytest.raises(ValueError, match="noise or rounding"):
        width(collect(served(Terms(top=None, digits=-1)), PROMPTS, TOKENS))


def test_a_collection_that_broke_off_goes_on_where_it_stopped() -> None:
    rows: list[torch.Tensor] = []

    class Dies:
        def __init__(self, lives: int) -> None:
            self.inner, self.left = served(Terms(top=None)), lives
            self.bill = self.inner.bill

        def __call__(self, prompt, bias={}):  # noqa: B006
            self.left -= 1
            if self.left < 0:
                raise Dropped("gone")
            return self.inner(prompt, bias)

    with pytest.raises(Dropped):
        collect(Dies(17), PROMPTS, TOKENS, keep=lambda x: rows.__setitem__(slice(None), [x]))
    assert len(rows[0]) == 17
    again = served(Terms(top=None))
    torch.testing.assert_close(
        collect(again, PROMPTS, TOKENS, known=rows[0]), collect(served(Terms(top=None)), PROMPTS, TOKENS)
    )
    assert again.bill.queries == 23
    with pytest.raises(ValueError, match="known has the shape"):
        collect(again, PROMPTS, TOKENS[:5], known=rows[0])


def test_an_api_that_does_not_show_everything_needs_an_attack() -> None:
    with pytest.raises(ValueError, match="shows 5 log-probabilities, not all of them"):
        collect(served(Terms(top=5)), PROMPTS, TOKENS)


def test_random_prompts() -> None:
    prompts = random_prompts(30, 10, length=3, seed=1)
    assert prompts == random_prompts(30, 10, length=3, seed=1) != random_prompts(30, 10, length=3, seed=2)
    assert {len(p) for p in prompts} == {3}
    assert {t for p in prompts for t in p} == set(range(10))
    with pytest.raises(ValueError, match="at least 1"):
        random_prompts(0, 10)


@pytest.mark.parametrize("name", list(families.FAMILIES))
def test_the_width_of_every_family(name: str) -> None:
    """The output projection in float64; layer norms without a bias change the width by one."""
    if name == "Gemma 2":
        pytest.skip("a soft cap is not linear")
    ask = Provider.of(families.bridge(name), Terms(top=None), double=True)
    found = width(collect(ask, random_prompts(90, families.VOCAB, length=4), range(90)))
    assert abs(found.size - families.WIDTH) <= 1
    assert found.ratio > 1e6
