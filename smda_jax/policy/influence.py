"""How a change of X and Y moves the policy, feature by feature and pathway by pathway."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Float64, Int

from smda_jax.policy.ridge import FittedPolicy, gram_factor, in_float64, solve


@dataclass(frozen=True)
class Influence:
    """Shift of the policy under each pair's step. `score` says how far the step moves the policy
    along itself.

    Attributes:
        W: the policy.
        delta_w_x: shift through feature activations.
        delta_w_y: shift through output probabilities.
    """

    W: Float64[np.ndarray, " feature"]
    delta_w_x: Float64[np.ndarray, "pair feature"]
    delta_w_y: Float64[np.ndarray, "pair feature"]

    @property
    def delta_w(self) -> Float64[np.ndarray, "pair feature"]:
        """ΔW = ΔW_X + ΔW_Y."""
        return self.delta_w_x + self.delta_w_y

    @property
    def contribution(self) -> Float64[np.ndarray, "pair feature"]:
        """W[k] ΔW[k]."""
        return self.W * self.delta_w

    @property
    def score(self) -> Float64[np.ndarray, " pair"]:
        """Σ_k contribution[k]."""
        return self.contribution.sum(axis=1)


@in_float64
@partial(jax.jit, static_argnames="exact")
def _pathways(X: Any, Y: Any, W: Any, delta_x: Any, delta_y: Any, alpha: Any, exact: bool) -> Any:
    residual = Y - X @ W
    factor = gram_factor(X, alpha)

    def one(change: tuple[Array, Array]) -> tuple[Array, Array]:
        dX, dY = change
        moved = dX @ W
        if not exact:
            # U⁻¹(ΔXᵀY − (ΔXᵀX + XᵀΔX)W), with ΔXᵀXW joined to ΔXᵀY: only matrix-vector products are
            # left.
            return solve(factor, dX.T @ residual - X.T @ moved), solve(factor, X.T @ dY)
        # U'(W' − W) = X'ᵀY' − U'W; XᵀY − UW = 0 has been taken out, so nothing large cancels.
        after = X + dX
        own = gram_factor(after, alpha)
        return solve(own, dX.T @ (residual - moved) - X.T @ moved), solve(own, after.T @ dY)

    return jax.lax.map(one, (delta_x, delta_y))


def decompose(
    X: Float[np.ndarray | Array, "prompt feature"],
    Y: Float[np.ndarray | Array, " prompt"],
    W: Float[np.ndarray | Array, " feature"],
    delta_x: Float[np.ndarray | Array, "pair prompt feature"],
    delta_y: Float[np.ndarray | Array, "pair prompt"],
    alpha: float,
    *,
    exact: bool = False,
    rows: Int[np.ndarray, " row"] | None = None,
) -> Influence:
    """Exact first-order change of the policy (arXiv 2606.29171), with U = XᵀX + αI:

        ΔW_X = U⁻¹ (ΔXᵀ Y − (ΔXᵀX + XᵀΔX) W),   ΔW_Y = U⁻¹ XᵀΔY

    or, if `exact`, the change of a refitted policy: ΔW_X = W(X+ΔX, Y) − W(X, Y) and ΔW_Y = W(X+ΔX,
    Y+ΔY) − W(X+ΔX, Y).

    Args:
        X: feature activations.
        Y: log-probabilities of the behaviour, in nats.
        W: the ridge policy of X, Y and alpha.
        delta_x: change of X under each pair's step.
        delta_y: change of Y.
        alpha: of the policy.
        exact: for finite changes rather than first-order ones.
        rows: the prompts that the policy was fitted to; default: all.
    """
    if rows is not None:
        # A prompt of zeros takes no part in any of the sums, so subsets of every size share one
        # compiled program.
        inside = np.zeros(len(Y), bool)
        inside[rows] = True
        X, delta_x = np.where(inside[:, None], X, 0), np.where(inside[:, None], delta_x, 0)
        Y, delta_y = np.where(inside, Y, 0), np.where(inside, delta_y, 0)
    x, y = _pathways(X, Y, W, delta_x, delta_y, alpha, exact)
    return Influence(np.asarray(W, np.float64), x, y)


@dataclass(frozen=True)
class LinearReadouts:
    """Linear readouts `uᵀΔW` of the policy's shift, as weights of each ΔX[n,k] and each ΔY[n].

    With v = U⁻¹u, q = Xv and the residual r = Y − XW:

        uᵀΔW_X = Σ_{n,k} (r[n] v[k] − q[n] W[k]) ΔX[n,k],   uᵀΔW_Y = Σ_n q[n] ΔY[n]

    Attributes:
        W: the policy.
        v: U⁻¹u of each readout.
        q: Xv, zero at prompts that the policy was not fitted to.
        residual: r, zero there too.
    """

    W: Float64[np.ndarray, " feature"]
    v: Float64[np.ndarray, "readout feature"]
    q: Float64[np.ndarray, "readout prompt"]
    residual: Float64[np.ndarray, " prompt"]

    def weight_x(self) -> Float64[np.ndarray, "readout prompt feature"]:
        """Weights of ΔX; multiply by the gate for weights of ΔZ."""
        return self.residual[None, :, None] * self.v[:, None] - self.q[..., None] * self.W

    def weight_y(self) -> Float64[np.ndarray, "readout prompt"]:
        """Weights of ΔY."""
        return self.q


def linear_readouts(
    X: Float[np.ndarray, "prompt feature"],
    Y: Float[np.ndarray, " prompt"],
    policy: FittedPolicy,
    u: Float[np.ndarray, "readout feature"] | None = None,
) -> LinearReadouts:
    """Readouts `uᵀΔW`; by default the one whose value is the score, u = W."""
    inside = np.isin(np.arange(len(Y)), policy.rows)
    X, W = np.where(inside[:, None], X, 0).astype(np.float64), np.asarray(policy.W, np.float64)
    v = _inverse_times(X, W[None] if u is None else u, policy.alpha)
    return LinearReadouts(W, v, v @ X.T, np.where(inside, Y - X @ W, 0))


@in_float64
@jax.jit
def _inverse_times(X: Any, u: Any, alpha: Any) -> Any:
    return solve(gram_factor(X, alpha), u.T).T
