"""Weight samplers: which objective weights each training prompt is given.

Knows nothing of prompts, models or processes. A draw is a function of seeds, positions and the
sampler's state alone, so that whoever draws a prompt's weights draws the same ones: neither the
number of processes nor accumulation changes them.

| name | draws | source |
|---|---|---|
| `dirichlet` | Dirichlet(concentration) | MO-ODPO, Gupta et al. 2025 |
| `corners` | a corner with a set probability, otherwise as `dirichlet` | ours |
| `stratified` | uniform, evenly spread over successive prompts | Roberts 2018; Fang and Wang 1994 |
| `front` | more where the rewards move faster with the weights | SURF, arXiv 2605.20619 |

Shapes: B prompts, K objectives, g completions; N lattice points, S small simplices and E edges of
the lattice on which `front` keeps its statistics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moodpo.core.simplex import (
    antithetic_weights,
    cube_to_simplex,
    kronecker_points,
    lattice_coordinates,
    lattice_simplices,
    sample_dirichlet,
    simplex_lattice,
)
from moodpo.errors import ConfigError, ManifestError

__all__ = [
    "WEIGHT_SAMPLERS",
    "CornerSampler",
    "DirichletSampler",
    "FrontLattice",
    "FrontSampler",
    "SeededSampler",
    "StratifiedSampler",
    "WeightSampler",
    "as_sampler",
    "check_uniform",
    "fit_front",
    "front_statistics",
    "make_sampler",
    "traversal_speeds",
]

WEIGHT_SAMPLERS = ("dirichlet", "corners", "stratified", "front")

LATTICE_POINTS = 36  # at most, of the front's statistics: as many weights as a sweep visits
LATTICE_DIVISIONS = 10  # at most: tenths for two objectives
MAX_FRONT_OBJECTIVES = 8  # the lattice of more would be the corners alone
PRECISIONS = tuple(4.0**power for power in range(-2, 7))
"""λ to choose among: variance of the noise over that of a step between lattice points."""
RELATIVE_NOISE_FLOOR = 1e-9  # of the squared rewards; below is what SUM_UNIT rounds away
SUM_UNIT = 2.0**-24  # statistics are multiples of it, so their sums do not depend on the order


class WeightSampler:
    """Draws weights; subclass it and override `draw` for your own.

    A sampler that learns from the rewards overrides `observe` to `load_state_dict`; for the others
    they do nothing. After each step the caller adds up `pending()` over all processes and hands
    the sums to every process's `absorb`.
    """

    def draw(self, seeds: Sequence[int], *, positions: Sequence[int], number: int = 0) -> Tensor:
        """One weight vector per prompt, each independent of which others are drawn with it.

        Args:
            seeds: B seeds, one per prompt and draw.
            positions: B places of the prompts in the whole run: how many prompts come before.
            number: Which of a prompt's draws this is.

        Returns:
            Weights `[B, K]` in float32.
        """
        raise NotImplementedError

    def opposite(self, weights: Tensor) -> Tensor:
        """The opposite of drawn weights `[B, K]`."""
        return antithetic_weights(weights)

    def constant(self) -> WeightSampler:
        """What to draw by where weights must not change with training, as in an evaluation."""
        return self

    def observe(self, weights: Tensor, rewards: Tensor) -> None:
        """Notes the normalized rewards `[B, g, K]` of completions under weights `[B, K]`."""

    def pending(self) -> Tensor:
        """What was observed since the last `absorb`, in float64: a vector of sums."""
        return torch.zeros(0, dtype=torch.float64)

    def absorb(self, totals: Tensor) -> None:
        """Learns the sums over all processes of what was pending, and forgets what was."""

    def state_dict(self) -> dict[str, Any]:
        """All that was learned, as plain JSON values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where the sampler of `state_dict` stopped."""


class SeededSampler(WeightSampler):
    """A plain function of seeds as a sampler.

    Args:
        function: Weights `[B, K]` of B seeds, one row per seed and independent of the others.
    """

    def __init__(self, function: Callable[[Sequence[int]], Tensor]) -> None:
        self.function = function

    def draw(self, seeds: Sequence[int], *, positions: Sequence[int], number: int = 0) -> Tensor:
        """As the function draws."""
        return self.function(seeds)


class DirichletSampler(WeightSampler):
    """Independent draws w ~ Dirichlet(concentration) (MO-ODPO, Gupta et al. 2025).

    Args:
        concentration: One value for all objectives, or K; 1 is uniform, below 1 favors corners.
        num_objectives: K.

    Raises:
        WeightsError: If the concentration is not positive or has another length than K.
    """

    def __init__(self, concentration: float | Sequence[float], num_objectives: int) -> None:
        values = [concentration] if isinstance(concentration, (int, float)) else concentration
        self.concentration = values[0] if len(values) == 1 else tuple(values)
        self.num_objectives = num_objectives
        self._draw_one(torch.Generator())  # refuses an impossible concentration

    def draw(self, seeds: Sequence[int], *, positions: Sequence[int], number: int = 0) -> Tensor:
        """One Dirichlet draw per seed."""
        rows = [self._draw_one(torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(rows) if rows else torch.zeros(0, self.num_objectives)

    def _draw_one(self, generator: torch.Generator) -> Tensor:
        return sample_dirichlet(
            self.concentration,
            num_samples=1,
            num_objectives=self.num_objectives,
            generator=generator,
        )[0]


class CornerSampler(DirichletSampler):
    """Dirichlet draws, of which a share is replaced by corners: one objective alone.

    `p · (1/K) Σ_k δ(e_k) + (1 - p) · Dirichlet(concentration)`. No Dirichlet ever draws a corner
    itself, and users ask for corners. With p = 0 the draws are those of `DirichletSampler`.
    (Ours.)

    Args:
        concentration: Of the Dirichlet draws, one value or K.
        num_objectives: K.
        corner_probability: p, from 0 to 1.

    Raises:
        ConfigError: If p is out of range.
        WeightsError: If the concentration is not positive or has another length than K.
    """

    def __init__(
        self,
        concentration: float | Sequence[float],
        num_objectives: int,
        *,
        corner_probability: float = 0.2,
    ) -> None:
        self.corner_probability = _share("corner_probability", corner_probability)
        super().__init__(concentration, num_objectives)

    def _draw_one(self, generator: torch.Generator) -> Tensor:
        weights = super()._draw_one(generator)
        chance, place = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        if chance >= self.corner_probability:
            return weights
        return torch.eye(self.num_objectives)[int(place * self.num_objectives)]


def check_uniform(concentration: float | Sequence[float]) -> None:
    """Refuses what the stratified sampler cannot draw, before there is one.

    Raises:
        ConfigError: If a concentration is not 1.
    """
    values = [concentration] if isinstance(concentration, (int, float)) else concentration
    if any(value != 1 for value in values):
        raise ConfigError(
            f"The stratified weight sampler draws uniform weights, which is concentration 1; "
            f"got {concentration}. Use 1, or the dirichlet or corners sampler."
        )


class StratifiedSampler(WeightSampler):
    """Uniform weights that successive prompts spread evenly, within a step and over steps.

    A Kronecker sequence over the prompts of the run, shifted once at random (Cranley and Patterson
    1976), mapped to the simplex by breaking a stick. Every single draw is uniform, as of
    Dirichlet(1); any n successive prompts cover the simplex more evenly than n independent draws,
    though less so with more objectives. Each of a prompt's several draws has a shift of its own.

    Args:
        concentration: Must be 1: other Dirichlets have no inverse distribution in closed form.
        num_objectives: K, at least 2.
        seed: Of the shifts.

    Raises:
        ConfigError: If a concentration is not 1.
        WeightsError: If the concentration has another length than K.
    """

    def __init__(
        self, concentration: float | Sequence[float], num_objectives: int, *, seed: int = 0
    ) -> None:
        DirichletSampler(concentration, num_objectives)  # refuses an impossible concentration
        check_uniform(concentration)
        self.num_objectives = num_objectives
        self.seed = seed

    def draw(self, seeds: Sequence[int], *, positions: Sequence[int], number: int = 0) -> Tensor:
        """The weights at the prompts' positions; the seeds do not matter."""
        generator = torch.Generator().manual_seed(self.seed)
        num_dimensions = self.num_objectives - 1
        for _ in range(number + 1):  # the shift of a draw does not depend on how many there are
            shift = torch.rand(num_dimensions, generator=generator, dtype=torch.float64)
        points = kronecker_points(positions, num_dimensions=num_dimensions, shift=shift.tolist())
        return cube_to_simplex(points).float()


@dataclass(frozen=True, slots=True)
class FrontLattice:
    """The lattice on which a front is estimated, and the small simplices between its points."""

    divisions: int
    points: Tensor  # [N, K] float64
    simplices: Tensor  # [S, K] rows of `points`
    edges: Tensor  # [E, 2] rows of `points`, each pair of neighbors once
    simplex_edges: Tensor  # [S, K (K - 1) / 2] rows of `edges`

    @classmethod
    def of(cls, num_objectives: int, divisions: int | None = None) -> FrontLattice:
        """The lattice with `divisions`; by default the finest one of at most 36 points."""
        if divisions is None:
            divisions = max(
                h
                for h in range(1, LATTICE_DIVISIONS + 1)
                if math.comb(h + num_objectives - 1, h) <= LATTICE_POINTS
            )
        simplices = lattice_simplices(num_objectives, divisions)
        corners = torch.combinations(torch.arange(num_objectives))  # [K (K - 1) / 2, 2]
        sides: Any = simplices[:, corners].sort(dim=-1).values  # [S, K (K - 1) / 2, 2]
        edges, simplex_edges = sides.flatten(0, 1).unique(dim=0, return_inverse=True)
        return cls(
            divisions=divisions,
            points=(simplex_lattice(num_objectives, divisions) * divisions).double() / divisions,
            simplices=simplices,
            edges=edges,
            simplex_edges=simplex_edges.view(len(simplices), -1),
        )

    def laplacian(self) -> Tensor:
        """The graph Laplacian `[N, N]`: `vᵀLv = Σ_edges (v_i - v_j)²`."""
        signs = torch.zeros(len(self.edges), len(self.points), dtype=torch.float64)
        signs.scatter_(1, self.edges[:, :1], 1.0).scatter_(1, self.edges[:, 1:], -1.0)
        return signs.T @ signs


def front_statistics(weights: Tensor, rewards: Tensor, lattice: FrontLattice) -> Tensor:
    """What one batch says of the front, as sums over its prompts.

    With b the coordinates of a prompt's weights on the lattice and r its mean rewards, the sums of
    `1`, `rᵀr`, `b bᵀ` and `b rᵀ`: all that a least-squares fit of a front that is linear within
    each small simplex needs. Each summand is rounded to a multiple of 2⁻²⁴, so that float64 adds
    them without error, and processes in any order, while the sums stay below 2²⁹.

    Args:
        weights: `[B, K]`.
        rewards: Normalized `[B, g, K]`; a prompt with a missing score (NaN) is left out.
        lattice: Where the front is estimated.

    Returns:
        `[2 + N * N + N * K]` in float64.
    """
    means = rewards.detach().cpu().double().mean(dim=1)  # [B, K]
    known = means.isfinite().all(dim=-1)
    means = means[known]
    rows, coordinates = lattice_coordinates(weights.detach().cpu()[known], lattice.divisions)
    basis = torch.zeros(len(means), len(lattice.points), dtype=torch.float64)
    basis.scatter_(1, rows, coordinates)  # [B, N]
    summands = [
        torch.ones(len(means), 1, dtype=torch.float64),
        means.square().sum(dim=-1, keepdim=True),
        (basis[:, :, None] * basis[:, None, :]).flatten(1),
        (basis[:, :, None] * means[:, None, :]).flatten(1),
    ]
    return (torch.cat(summands, dim=1) / SUM_UNIT).round().sum(dim=0) * SUM_UNIT


def fit_front(
    statistics: Tensor, lattice: FrontLattice, *, precisions: Sequence[float] = PRECISIONS
) -> tuple[Tensor, Tensor]:
    """Mean rewards at the lattice points, by Bayesian linear regression.

    Rewards are the front's, linear within each small simplex, and noise of variance s². Before
    anything is seen, neighboring lattice points differ by N(0, s² / λ). With `M = Σ b bᵀ + λL`, L
    the Laplacian, the values are `v = M⁻¹ Σ b rᵀ` and their covariance is `s² M⁻¹`. Both
    `s² = Q / (n - 1)`, `Q = Σ rᵀr - tr(vᵀ Σ b rᵀ)`, and λ are those of the largest restricted
    likelihood, that is, of the smallest `(n - 1) ln Q + ln det M - (N - 1) ln λ` (empirical Bayes:
    Rasmussen and Williams 2006, section 2.7). So a front that is lost in the noise is fitted flat.

    Args:
        statistics: Sums as `front_statistics` returns them, of at least one prompt.
        lattice: The same.
        precisions: Values of λ to choose among.

    Returns:
        Values `[N, K]` and their covariance `[N, N]`, summed over objectives, in float64.
    """
    count, squares, gram, sums = _split(statistics, lattice)
    laplacian = lattice.laplacian()
    freedom = (count - 1.0).clamp_min(1.0)
    floor = (RELATIVE_NOISE_FLOOR * squares).clamp_min(torch.finfo(torch.float64).tiny)

    def fit(precision: float) -> tuple[float, Tensor, Tensor]:
        root = torch.linalg.cholesky(gram + precision * laplacian)
        values = torch.cholesky_solve(sums, root)  # [N, K]
        unexplained = (squares - (sums * values).sum()).clamp_min(floor)
        deviance = freedom * unexplained.log() + 2.0 * root.diagonal().log().sum()
        deviance = deviance.item() - (len(root) - 1) * math.log(precision)
        return deviance, values, unexplained / freedom * torch.cholesky_inverse(root)

    _, values, covariance = min(map(fit, precisions), key=lambda fitted: fitted[0])
    return values, covariance


def traversal_speeds(values: Tensor, covariance: Tensor, lattice: FrontLattice) -> Tensor:
    """How fast mean rewards move with the weights, in each small simplex.

    SURF's `‖dr/dw‖` (arXiv 2605.20619), whose integral over w is the length of the front. An edge
    of the lattice is as long as the root of its posterior mean square,
    `‖v_i - v_j‖² + C_ii + C_jj - 2 C_ij`: where little is known, all edges are long, and noise
    does not pass for a bend of the front. A small simplex has the mean speed of its edges. For
    K = 2 it is an edge. (K > 2 and the posterior: ours.)

    Args:
        values: v, mean rewards at the lattice points `[N, K]`.
        covariance: C, `[N, N]`, summed over objectives.
        lattice: Their lattice.

    Returns:
        `[S]`, in units of reward per unit of weight, non-negative.
    """
    first, second = lattice.edges.T  # [E]
    squares = (values[first] - values[second]).square().sum(dim=-1)
    variances = covariance.diagonal()
    squares = squares + variances[first] + variances[second] - 2.0 * covariance[first, second]
    distances = (lattice.points[first] - lattice.points[second]).norm(dim=-1)
    speeds: Tensor = squares.clamp_min(0.0).sqrt() / distances  # [E]
    return speeds[lattice.simplex_edges].mean(dim=-1)


class FrontSampler(WeightSampler):
    """Weights spread evenly along the front instead of along the simplex.

    Where rewards hardly move with the weights, uniform weights ask for the same answer again and
    again; where they jump, the front stays bare (SURF, arXiv 2605.20619). Here the density of the
    weights is `ε · Dirichlet(concentration) + (1 - ε) · q`, with q proportional to the
    `traversal_speeds` of the fitted front and constant within each small simplex of the lattice.
    Statistics decay by a constant factor per step, as the front moves while the policy learns.
    Before anything is observed the draws are those of `DirichletSampler`.

    Args:
        concentration: Of the exploring draws, one value or K; 1 is uniform.
        num_objectives: K, from 2 to 8.
        exploration: ε, from 0 to 1.
        decay: Share of the statistics that a step leaves, from 0 to 1; 0.98 remembers about 50
            steps.
        divisions: Of the lattice; by default the most, up to 10, that make at most 36 points.

    Raises:
        ConfigError: If a number is out of range.
        WeightsError: If the concentration is not positive or has another length than K.
    """

    def __init__(
        self,
        concentration: float | Sequence[float],
        num_objectives: int,
        *,
        exploration: float = 0.3,
        decay: float = 0.98,
        divisions: int | None = None,
    ) -> None:
        if not 2 <= num_objectives <= MAX_FRONT_OBJECTIVES:
            raise ConfigError(
                f"The front weight sampler knows 2 to {MAX_FRONT_OBJECTIVES} objectives; got "
                f"{num_objectives}. Use the dirichlet sampler."
            )
        self.exploration, self.decay = _share("exploration", exploration), _share("decay", decay)
        self.lattice = FrontLattice.of(num_objectives, divisions)
        self._explorer = DirichletSampler(concentration, num_objectives)
        num_points = len(self.lattice.points)
        size = 2 + num_points * (num_points + num_objectives)
        self._statistics = torch.zeros(size, dtype=torch.float64)
        self._pending = torch.zeros_like(self._statistics)
        self._cumulative: Tensor | None = None  # [S] probabilities, added up; None: only explore

    def draw(self, seeds: Sequence[int], *, positions: Sequence[int], number: int = 0) -> Tensor:
        """One draw per seed, by what was absorbed so far."""
        rows = [self._draw_one(torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(rows) if rows else torch.zeros(0, self._explorer.num_objectives)

    def constant(self) -> WeightSampler:
        """The Dirichlet that it starts from."""
        return self._explorer

    def observe(self, weights: Tensor, rewards: Tensor) -> None:
        """Notes the normalized rewards `[B, g, K]` of completions under weights `[B, K]`."""
        self._pending += front_statistics(weights, rewards, self.lattice)

    def pending(self) -> Tensor:
        """The statistics of what was observed since the last `absorb`."""
        return self._pending.clone()

    def absorb(self, totals: Tensor) -> None:
        """Ends a step: old statistics decay, those of all processes join them."""
        self._statistics = self.decay * self._statistics + totals.cpu().double()
        self._pending = torch.zeros_like(self._statistics)
        self._update()

    def probabilities(self) -> Tensor:
        """The probability `[S]` of each small simplex, exploration left out; sums to 1."""
        if not self._knows():
            return torch.full((len(self.lattice.simplices),), 1.0 / len(self.lattice.simplices))
        speeds = traversal_speeds(*fit_front(self._statistics, self.lattice), self.lattice)
        return speeds / speeds.sum()

    def state_dict(self) -> dict[str, Any]:
        """The statistics, as plain JSON values that restore them bit for bit."""
        return {"divisions": self.lattice.divisions, "statistics": self._statistics.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where the sampler of `state_dict` stopped.

        Raises:
            ManifestError: If the state is not that of such a sampler on the same lattice.
        """
        try:
            divisions = int(state["divisions"])
            statistics = torch.tensor(state["statistics"], dtype=torch.float64)
        except (KeyError, TypeError, ValueError) as error:
            raise ManifestError(
                f"The checkpoint has no usable state of the front weight sampler ({error!r}). "
                "Resume with the sampler that the checkpoint was trained with."
            ) from error
        expected = self._statistics.shape
        if divisions != self.lattice.divisions or statistics.shape != expected:
            raise ManifestError(
                f"The checkpoint's front weight sampler has {divisions} divisions and "
                f"{statistics.numel()} statistics; this run's has {self.lattice.divisions} and "
                f"{expected.numel()}. Resume with the rewards and the sampler it was trained with."
            )
        self._statistics = statistics
        self._pending = torch.zeros_like(statistics)
        self._update()

    def _knows(self) -> bool:
        return bool(self._statistics[0] >= 1.0)  # a prompt's worth, after decay

    def _update(self) -> None:
        self._cumulative = self.probabilities().cumsum(dim=0) if self._knows() else None

    def _draw_one(self, generator: torch.Generator) -> Tensor:
        weights = self._explorer._draw_one(generator)
        chance, place = torch.rand(2, generator=generator, dtype=torch.float64)
        if self._cumulative is None or chance < self.exploration:
            return weights
        cell = torch.searchsorted(self._cumulative, place * self._cumulative[-1], right=True)
        corners = self.lattice.simplices[cell.clamp(max=len(self.lattice.simplices) - 1)]  # [K]
        within = sample_dirichlet(
            1.0, num_samples=1, num_objectives=len(corners), generator=generator
        )[0].double()
        return (within / within.sum() @ self.lattice.points[corners]).float()


def as_sampler(sampler: WeightSampler | Callable[[Sequence[int]], Tensor]) -> WeightSampler:
    """The sampler itself, or a plain function of seeds as one."""
    return sampler if isinstance(sampler, WeightSampler) else SeededSampler(sampler)


def make_sampler(
    name: str,
    *,
    concentration: float | Sequence[float] = 1.0,
    num_objectives: int,
    corner_probability: float = 0.2,
    exploration: float = 0.3,
    seed: int = 0,
) -> WeightSampler:
    """A weight sampler by name.

    Args:
        name: One of `WEIGHT_SAMPLERS`.
        concentration: Of the Dirichlet, one value or K; `stratified` takes 1 only.
        num_objectives: K.
        corner_probability: Share of corners, for `corners`.
        exploration: Share of draws that ignore the front, for `front`.
        seed: Of what is drawn once per run, for `stratified`.

    Raises:
        ConfigError: If the name is unknown, or a setting out of range or not for this sampler.
        WeightsError: If the concentration is not positive or has another length than K.
    """
    if name == "dirichlet":
        return DirichletSampler(concentration, num_objectives)
    if name == "corners":
        return CornerSampler(concentration, num_objectives, corner_probability=corner_probability)
    if name == "stratified":
        return StratifiedSampler(concentration, num_objectives, seed=seed)
    if name == "front":
        return FrontSampler(concentration, num_objectives, exploration=exploration)
    raise ConfigError(f"Unknown weight sampler {name!r}. Use one of {', '.join(WEIGHT_SAMPLERS)}.")


def _split(statistics: Tensor, lattice: FrontLattice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Count, squares, `[N, N]` and `[N, K]` of what `front_statistics` returns."""
    num_points, num_objectives = lattice.points.shape
    gram, sums = statistics[2 : 2 + num_points**2], statistics[2 + num_points**2 :]
    return (
        statistics[0],
        statistics[1],
        gram.view(num_points, num_points),
        sums.view(num_points, num_objectives),
    )


def _share(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ConfigError(f"{name} must be at least 0 and at most 1; got {value}.")
    return float(value)
