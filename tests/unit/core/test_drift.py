"""Drift against SciPy and against sums done by hand."""

import math
from collections import Counter

import numpy as np
import pytest
from scipy.stats import chi2_contingency, ks_2samp

from service.core.drift import kolmogorov_smirnov, psi, two_proportions


def drawn(mean: float, n: int, seed: int) -> Counter[int]:
    values = np.clip(np.random.default_rng(seed).normal(mean, 0.15, n), 0, 0.999)
    return Counter((values * 1000).astype(int).tolist())


@pytest.mark.parametrize("mean", [0.5, 0.53, 0.6])
def test_kolmogorov_and_smirnov_say_what_scipy_says(mean: float) -> None:
    first, second = drawn(0.5, 900, 1), drawn(mean, 400, 2)
    expected = ks_2samp(list(first.elements()), list(second.elements()), method="asymp")
    found = kolmogorov_smirnov(first, second)
    assert found is not None
    assert found[0] == pytest.approx(expected.statistic)
    # Stephens' correction is the difference.
    assert math.log10(found[1] + 1e-30) == pytest.approx(math.log10(expected.pvalue + 1e-30), abs=0.5)


def test_the_same_films_are_no_drift() -> None:
    films = drawn(0.5, 500, 3)
    assert kolmogorov_smirnov(films, films) == (0.0, 1.0)
    assert psi(films, films) == 0.0
    assert psi(films, Counter()) is None
    assert kolmogorov_smirnov(Counter(), films) is None


def test_the_stability_index_is_its_formula() -> None:
    reference = Counter(dict.fromkeys(range(10), 100))
    current = Counter({**dict.fromkeys(range(8), 100), 8: 50, 9: 150})
    p, q = 100.5 / 1005, (50.5 / 1005, 150.5 / 1005)
    assert psi(reference, current) == pytest.approx(sum((x - p) * math.log(x / p) for x in q))


def test_a_shift_by_a_standard_deviation_is_above_the_bound_and_chance_is_not() -> None:
    same, shifted = (
        psi(drawn(0.5, 2000, 4), drawn(0.5, 1000, 5)),
        psi(drawn(0.5, 2000, 4), drawn(0.65, 1000, 6)),
    )
    assert same is not None
    assert shifted is not None
    assert same < 0.05
    assert shifted > 0.5


def test_many_films_of_one_score_are_one_bin() -> None:
    assert psi(Counter({3: 900, 4: 1, 5: 99}), Counter({3: 900, 4: 1, 5: 99})) == 0.0
    found = psi(Counter({3: 900, 4: 1, 5: 99}), Counter({5: 1000}))
    assert found is not None
    assert found > 1


def test_two_proportions_are_the_chi_square_test() -> None:
    expected = chi2_contingency([[30, 970], [60, 840]], correction=False).pvalue
    assert two_proportions((30, 1000), (60, 900)) == pytest.approx(expected)
    assert two_proportions((0, 10), (0, 20)) == 1.0
    assert two_proportions((0, 0), (1, 20)) is None
