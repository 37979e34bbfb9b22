"""Logistic regression with weights and soft labels: maximum likelihood by Newton's method, exact up to rounding, also
for many resamples.

Names: `_N` one value per row, `_K` per feature, `_R` per resample.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from togi.core.errors import StageError
from togi.evaluate.statistics.interval import Floats

ROUNDS, STEPS = 200, 60
LEAST = 1e-9
"""The least penalty: without one, a model that only wins, or two identical features, have no maximum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Regression:
    """Rows of features, with the success share (0 to 1) and weight of each row. `penalty` multiplies half the sum of
    the squared coefficients: scikit-learn's 1 / C."""

    x_NK: Floats
    share_N: Floats
    weight_N: Floats
    penalty: float = 0.0

    def fit(self) -> Floats:
        """The coefficients (K). Raises StageError if the fit does not converge."""
        return self._newton(self.weight_N, np.zeros(self.x_NK.shape[1]))

    def resampled(self, counts_RN: Floats, found_K: Floats) -> Floats:
        """The coefficients (R, K) with row n repeated `counts_RN[r, n]` times, within 1e-7. Starts from `found_K` and
        steps with the curvature of all rows; resamples that do not converge use Newton's method."""
        weight_RN = counts_RN * self.weight_N
        inverse_KK = np.linalg.inv(self._bend(self.weight_N, found_K))
        coef_RK = np.tile(found_K, (len(counts_RN), 1))
        open_R = np.arange(len(counts_RN))
        for _ in range(STEPS):
            now_RK = coef_RK[open_R]
            residual_RN = weight_RN[open_R] * (self.share_N - expit(now_RK @ self.x_NK.T))
            step_RK = (residual_RN @ self.x_NK - self._least * now_RK) @ inverse_KK
            coef_RK[open_R] = now_RK + np.clip(step_RK, -1.0, 1.0)
            open_R = open_R[np.abs(step_RK).max(axis=1) > 1e-7]
            if not len(open_R):
                return coef_RK
        for place in open_R:
            coef_RK[place] = self._newton(weight_RN[place], found_K)
        return coef_RK

    def influence(self, found_K: Floats) -> Floats:
        """The influence of each row on the coefficients, to first order (N, K): the infinitesimal jackknife."""
        residual_N = self.weight_N * (self.share_N - expit(self.x_NK @ found_K))
        return (self.x_NK * residual_N[:, None]) @ np.linalg.inv(self._bend(self.weight_N, found_K))

    @property
    def _least(self) -> float:
        return max(self.penalty, LEAST)

    def _newton(self, weight_N: Floats, start_K: Floats) -> Floats:
        coef_K = start_K.copy()
        for _ in range(ROUNDS):
            residual_N = weight_N * (self.share_N - expit(self.x_NK @ coef_K))
            slope_K = self.x_NK.T @ residual_N - self._least * coef_K
            step_K = np.linalg.solve(self._bend(weight_N, coef_K), slope_K)
            coef_K += np.clip(step_K, -2.0, 2.0)
            if np.abs(step_K).max() < 1e-9:
                return coef_K
        raise StageError(f"logistic regression: {self.x_NK.shape[1]} coefficients did not converge in {ROUNDS} rounds")

    def _bend(self, weight_N: Floats, coef_K: Floats) -> Floats:
        """The curvature (K, K)."""
        chance_N = expit(self.x_NK @ coef_K)
        bent_NK = self.x_NK * (weight_N * chance_N * (1 - chance_N))[:, None]
        return bent_NK.T @ self.x_NK + self._least * np.eye(len(coef_K))
