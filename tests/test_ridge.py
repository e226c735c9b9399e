"""Identities of the closed-form solvers."""

import numpy as np
import pytest
import torch

from sklearn_clpdd.utils._ridge import ridge, ridge_dual, ridge_primal, solve_ridged


def _problem(n, d, C=3):
    generator = torch.Generator().manual_seed(n * d)
    return torch.randn(n, d, generator=generator).double(), torch.randn(n, C, generator=generator).double()


@pytest.mark.parametrize(("n", "d"), [(5, 30), (30, 5), (12, 12), (1, 7)])
@pytest.mark.parametrize("penalty", [1e-4, 1.0, 1e4])
def test_primal_is_dual_and_solves_the_normal_equations(n, d, penalty):
    Z, Y = _problem(n, d)
    primal, dual = ridge_primal(Z, Y, penalty), ridge_dual(Z, Y, penalty)
    torch.testing.assert_close(primal, dual, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close((Z.T @ Z) @ dual + penalty * dual, Z.T @ Y, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("n", "d", "smaller"), [(5, 30, ridge_dual), (30, 5, ridge_primal)])
def test_auto_takes_the_smaller_system(n, d, smaller):
    Z, Y = _problem(n, d)
    assert torch.equal(ridge(Z, Y, 0.1), smaller(Z, Y, 0.1))


def test_solution_minimises_the_ridge_loss():
    Z, Y = _problem(8, 4)

    def loss(W):
        return (Z @ W - Y).square().sum() + 0.3 * W.square().sum()

    W = ridge(Z, Y, 0.3)
    rng = np.random.default_rng(0)
    for _ in range(5):
        assert loss(W) < loss(W + 1e-3 * torch.from_numpy(rng.standard_normal(W.shape)))


def test_limits_of_the_penalty():
    Z, Y = _problem(20, 6)
    least_squares = torch.linalg.lstsq(Z, Y).solution
    torch.testing.assert_close(ridge(Z, Y, 1e-10), least_squares, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(ridge(Z, Y, 1e10) * 1e10, Z.T @ Y, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("solve", [ridge_primal, ridge_dual])
def test_gradient_through_the_solve(solve):
    Z, Y = _problem(4, 6)
    penalty = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(solve, (Z.requires_grad_(), Y.requires_grad_(), penalty))


def test_a_failed_factorisation_gives_nan():
    indefinite = torch.diag(torch.tensor([1.0, -1.0]))
    assert solve_ridged(indefinite, torch.ones(2, 1), 0.0).isnan().all()
