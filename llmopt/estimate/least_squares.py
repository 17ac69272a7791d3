"""Nonlinear least squares with a prior, robust against single wild points; without numpy, whose import takes longer than a fit.

Residuals are weighed as Huber does (1964): beyond ``WILD`` standard deviations they pull no harder.  The prior of each
unknown is normal around 0.  Levenberg and Marquardt's damping keeps steps where the model still holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Vector = list[float]
Matrix = list[Vector]
WILD = 2.0
STEP = 1e-4  # of a numeric derivative
ROUNDS = 25
SETTLED = 1e-5


@dataclass(frozen=True, kw_only=True)
class Point:
    """Several residuals of one observation: ``residuals`` of the unknowns, of which those in ``uses`` matter to it.

    ``deviations``: the standard deviation that each is expected to have.
    """

    residuals: Callable[[Vector], Vector]
    uses: tuple[int, ...]
    deviations: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Solution:
    """``left_out``: of each point, its residuals where it is predicted by all others, by the linearized model."""

    unknowns: Vector
    covariance: Matrix
    left_out: tuple[Vector, ...]


def solve(points: Sequence[Point], spreads: Sequence[float]) -> Solution:
    """``spreads``: the prior standard deviation of each unknown."""
    unknowns, damping = [0.0] * len(spreads), 1e-3
    cost = total(points, spreads, unknowns)
    for _ in range(ROUNDS):
        matrix, gradient, _ = normal(points, spreads, unknowns)
        for place in range(len(spreads)):
            matrix[place][place] *= 1 + damping
        step = forward_back(cholesky(matrix), gradient)
        moved = [u - s for u, s in zip(unknowns, step, strict=True)]
        now = total(points, spreads, moved)
        if now <= cost:
            done = cost - now < SETTLED * max(1.0, cost)
            unknowns, cost, damping = moved, now, damping / 10
            if done:
                break
        else:
            damping *= 10
            if damping > 1e6:
                break
    matrix, _, rows = normal(points, spreads, unknowns)
    root = cholesky(matrix)
    size = len(spreads)
    inverse = [forward_back(root, [float(i == j) for i in range(size)]) for j in range(size)]
    left_out = tuple(without(point, unknowns, row, inverse) for point, row in zip(points, rows, strict=True))
    return Solution(unknowns=unknowns, covariance=inverse, left_out=left_out)


def total(points: Sequence[Point], spreads: Sequence[float], unknowns: Vector) -> float:
    found = sum((u / s) ** 2 / 2 for u, s in zip(unknowns, spreads, strict=True))
    for point in points:
        for r, deviation in zip(point.residuals(unknowns), point.deviations, strict=True):
            z = abs(r / deviation)
            found += z * z / 2 if z <= WILD else WILD * (z - WILD / 2)
    return found


def normal(
    points: Sequence[Point], spreads: Sequence[float], unknowns: Vector
) -> tuple[Matrix, Vector, list[list[tuple[float, Vector]]]]:
    """The normal matrix, the gradient, and of each point its weights with their rows of derivatives (of what it uses)."""
    size = len(spreads)
    matrix = [[0.0] * size for _ in range(size)]
    gradient = [u / s**2 for u, s in zip(unknowns, spreads, strict=True)]
    for place, spread in enumerate(spreads):
        matrix[place][place] = 1 / spread**2
    every = []
    for point in points:
        at = point.residuals(unknowns)
        columns = []
        for place in point.uses:
            moved = unknowns.copy()
            moved[place] += STEP
            columns.append([(b - a) / STEP for a, b in zip(at, point.residuals(moved), strict=True)])
        rows = []
        for number, (r, deviation) in enumerate(zip(at, point.deviations, strict=True)):
            z = abs(r / deviation)
            weight = (1.0 if z <= WILD else WILD / z) / deviation**2
            slopes = [column[number] for column in columns]
            rows.append((weight, slopes))
            for i, one in zip(point.uses, slopes, strict=True):
                gradient[i] += weight * one * r
                for j, other in zip(point.uses, slopes, strict=True):
                    matrix[i][j] += weight * one * other
        every.append(rows)
    return matrix, gradient, every


def without(point: Point, unknowns: Vector, rows: list[tuple[float, Vector]], inverse: Matrix) -> Vector:
    """(I - H)⁻¹ r, with the point's own block of the hat matrix (Cook and Weisberg 1982, section 2.2)."""
    residuals = point.residuals(unknowns)
    count = len(rows)
    block = [[float(i == j) for j in range(count)] for i in range(count)]
    for i in range(count):
        for j in range(count):
            block[i][j] -= rows[j][0] * sum(
                a * inverse[p][q] * b
                for p, a in zip(point.uses, rows[i][1], strict=True)
                for q, b in zip(point.uses, rows[j][1], strict=True)
            )
    return eliminate(block, residuals)


def cholesky(matrix: Matrix) -> Matrix:
    size = len(matrix)
    root = [[0.0] * size for _ in range(size)]
    for i in range(size):
        for j in range(i + 1):
            rest = matrix[i][j] - sum(root[i][k] * root[j][k] for k in range(j))
            root[i][j] = math.sqrt(max(rest, 1e-12)) if i == j else rest / root[j][j]
    return root


def forward_back(root: Matrix, right: Vector) -> Vector:
    size, found = len(root), right.copy()
    for i in range(size):
        found[i] = (found[i] - sum(root[i][k] * found[k] for k in range(i))) / root[i][i]
    for i in reversed(range(size)):
        found[i] = (found[i] - sum(root[k][i] * found[k] for k in range(i + 1, size))) / root[i][i]
    return found


def eliminate(matrix: Matrix, right: Vector) -> Vector:
    """Gauss with pivots, of a small matrix that need not be symmetric."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    size = len(rows)
    for i in range(size):
        pivot = max(range(i, size), key=lambda k: abs(rows[k][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for k in range(i + 1, size):
            share = rows[k][i] / rows[i][i]
            rows[k] = [a - share * b for a, b in zip(rows[k], rows[i], strict=True)]
    found = [0.0] * size
    for i in reversed(range(size)):
        found[i] = (rows[i][size] - sum(rows[i][k] * found[k] for k in range(i + 1, size))) / rows[i][i]
    return found
