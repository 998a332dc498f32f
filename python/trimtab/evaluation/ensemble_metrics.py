# SPDX-License-Identifier: MIT
"""Scores of an ensemble against one truth: pure functions on arrays, members first. A NaN makes every score of its lead NaN.

xskillscore (0.0.29) works under numpy 2, but brings dask and statsmodels and leaves the CRPS to properscoring 0.1, of 2015; the
formulas are a few lines each, and the tests hold ours against properscoring's and against a Gaussian's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

PROBABILITY_BINS = 10
SPREAD_BINS = 10
MOST_PAIRS = 2000  # of spread and error that are binned, a start and lead


def crps(members: np.ndarray, truth: np.ndarray, *, fair: bool = False) -> np.ndarray:
    """Continuous ranked probability score, the integral of (F(x) - 1[x >= y])^2, of the members' distribution F.

    mean_i |x_i - y| - mean_ij |x_i - x_j| / 2, with M (M - 1) pairs in the second mean when fair: what an ensemble of any size
    would get that is drawn from the same distribution. Sources: Gneiting and Raftery, J. Amer. Stat. Assoc. 102, 359 (2007),
    eq. 21, doi:10.1198/016214506000001437; fair: Ferro, Q. J. R. Meteorol. Soc. 140, 1917 (2014), doi:10.1002/qj.2270.

    Args:
        members: (M, ...) float64.
        truth: (...), same unit.
        fair: see above; then M is at least 2.

    Returns:
        (...), in the unit of the state; 0 is best. The fair one can be below 0.
    """
    error, difference = _crps_parts(members, truth)
    return error - difference / (len(members) * (len(members) - 1 if fair else len(members)))


def _crps_parts(members: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean distance from the truth, and half the sum of the distances of all pairs, from the sorted members."""
    count = len(members)
    weights = (2.0 * np.arange(1, count + 1) - count - 1).reshape(-1, *[1] * (members.ndim - 1))
    return np.abs(members - truth).mean(axis=0), (weights * np.sort(members, axis=0)).sum(axis=0)


def ranks(members: np.ndarray, truth: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Rank of the truth among the members, 0 to M; by lot where they are equal.

    Source: Hamill, Mon. Wea. Rev. 129, 550 (2001), doi:10.1175/1520-0493(2001)129<0550:IORHFV>2.0.CO;2.

    Args:
        members: (M, ...).
        truth: (...).
        generator: for the lots.

    Returns:
        (...) int.
    """
    below, equal = (members < truth).sum(axis=0), (members == truth).sum(axis=0)
    return below + np.where(equal > 0, generator.integers(0, equal + 1), 0)


@dataclass
class LeadScores:
    """Sums over starts and components of one lead time, and the scores that follow from them.

    Args:
        members: M, at least 2.
    """

    members: int
    count: int = 0
    squared_error: float = 0.0
    variance: float = 0.0
    crps: float = 0.0
    fair: float = 0.0
    climate: float = 0.0
    brier: float = 0.0
    rank_counts: np.ndarray = field(default_factory=lambda: np.empty(0))
    forecasts: np.ndarray = field(default_factory=lambda: np.zeros(PROBABILITY_BINS + 1))
    events: np.ndarray = field(default_factory=lambda: np.zeros(PROBABILITY_BINS + 1))
    cases: np.ndarray = field(default_factory=lambda: np.zeros(PROBABILITY_BINS + 1))
    pairs: list[np.ndarray] = field(default_factory=list)

    def add(self, members: np.ndarray, truth: np.ndarray, climate: np.ndarray, threshold: np.ndarray,
            generator: np.random.Generator) -> None:
        """Take in the components of one start.

        Args:
            members: (M, P).
            truth: (P,).
            climate: (T, P) states of the climatology.
            threshold: (P,) what the event of the reliability diagram exceeds.
            generator: for equal ranks.
        """
        if not self.rank_counts.size:
            self.rank_counts = np.zeros(self.members + 1)
        self.count += truth.size
        mean, variance = members.mean(axis=0), members.var(axis=0, ddof=1)
        error = np.square(mean - truth)
        self.squared_error += float(error.sum())
        self.variance += float(variance.sum())
        distance, pairs = (float(one.sum()) for one in _crps_parts(members, truth))
        self.crps += distance - pairs / self.members**2
        self.fair += distance - pairs / (self.members * (self.members - 1))
        self.climate += float(crps(climate, truth).sum())
        if not np.isfinite(members).all():  # the sums above are NaN by themselves; these would not be
            self.rank_counts += np.nan
            self.forecasts, self.events, self.cases = self.forecasts + np.nan, self.events + np.nan, self.cases + np.nan
            self.brier = np.nan
            return
        self.rank_counts += np.bincount(ranks(members, truth, generator), minlength=self.members + 1)
        probability, event = (members > threshold).mean(axis=0), (truth > threshold).astype(float)
        self.brier += float(np.square(probability - event).sum())
        bins = np.rint(probability * PROBABILITY_BINS).astype(int)
        for total, values in ((self.forecasts, probability), (self.events, event), (self.cases, np.ones(bins.size))):
            total += np.bincount(bins, weights=values, minlength=PROBABILITY_BINS + 1)
        self.pairs.append(np.stack([variance, error])[:, :: max(1, -(-truth.size // MOST_PAIRS))])

    def scores(self) -> dict[str, float]:
        """The scores; see `MEANINGS`."""
        rmse = float(np.sqrt(self.squared_error / self.count))
        spread = float(np.sqrt(self.variance / self.count * (self.members + 1) / self.members))
        share = self.rank_counts / self.count
        forecast, frequency = self.diagram()
        reliability = float(np.nansum(self.cases * np.square(forecast - frequency)) / self.count)
        return {
            "rmse": rmse, "spread": spread, "spread_skill": spread / rmse if rmse > 0 else np.nan,
            "crps": self.crps / self.count, "crps_fair": self.fair / self.count, "crps_climate": self.climate / self.count,
            "brier": self.brier / self.count, "reliability": reliability if np.isfinite(self.brier) else np.nan,
            "rank_deviation": float(np.abs(share - 1 / (self.members + 1)).sum()), "outliers": float(share[0] + share[-1]),
        }

    def diagram(self) -> tuple[np.ndarray, np.ndarray]:
        """Reliability diagram: mean forecast probability and observed frequency a bin; NaN where no forecast fell."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.forecasts / self.cases, self.events / self.cases

    def spread_skill_bins(self) -> np.ndarray:
        """(2, SPREAD_BINS) spread and RMSE where the spread is alike, from small to large; equally many pairs a bin.

        Source: Leutbecher and Palmer, J. Comput. Phys. 227, 3515 (2008), section 3.2, doi:10.1016/j.jcp.2007.02.014.
        """
        pairs = np.concatenate(self.pairs, axis=1) if self.pairs else np.empty((2, 0))
        if pairs.shape[1] < SPREAD_BINS or not np.isfinite(self.squared_error):
            return np.full((2, SPREAD_BINS), np.nan)
        parts = np.array_split(pairs[:, np.argsort(pairs[0], kind="stable")], SPREAD_BINS, axis=1)
        factor = np.array([(self.members + 1) / self.members, 1.0])
        return np.sqrt(np.stack([part.mean(axis=1) * factor for part in parts], axis=1))


MEANINGS = {
    "rmse": "root mean square error of the ensemble mean, over starts and components",
    "spread": "root of the mean variance of the members (M - 1), times (M + 1) / M, so that a perfect ensemble's equals its RMSE "
              "(Fortin et al., J. Hydrometeorol. 15, 1708 (2014), doi:10.1175/JHM-D-14-0008.1)",
    "spread_skill": "spread over RMSE; 1 is right, below 1 is too sure",
    "crps": "continuous ranked probability score; of one member it is the mean absolute error",
    "crps_fair": "the CRPS that an ensemble of any size would have (Ferro 2014)",
    "crps_climate": "CRPS of the climatology of the training runs, to be below of",
    "brier": "Brier score of the event that a component exceeds the upper tercile of its climatology",
    "reliability": "the part of the Brier score that comes from probabilities that are not what they say; 0 is best (Murphy, "
                   "J. Appl. Meteor. 12, 595 (1973), doi:10.1175/1520-0450(1973)012<0595:ANVPOT>2.0.CO;2)",
    "rank_deviation": "sum over the ranks of |share - 1 / (M + 1)|; 0 is a flat rank histogram (Delle Monache et al., J. "
                      "Geophys. Res. 111, D24307 (2006), doi:10.1029/2005JD006917)",
    "outliers": "share of the truth outside all members; 2 / (M + 1) is right",
}


def picked_leads(count: int, most: int = 7) -> list[int]:
    """Numbers of at most `most` lead times to show of `count`, evenly spread, without the start."""
    return [int(one) for one in np.unique(np.linspace(1, count - 1, min(most, count - 1)).round())] if count > 1 else [0]
