"""How far a quantity's estimate scatters, without belief in equal independent noise: runs of one size err together.

The variance of an estimate is a sum over sizes of squared influence (cluster-robust, bias-reduced: CR2 of Bell and
McCaffrey 2002), with the degrees of freedom that such a sum has (their Satterthwaite approximation: few sizes, few
degrees). One degree of freedom of the naive variance, that of equal independent noise, is pooled with it: with five
sizes the robust variance alone is mostly noise. (This one number was tuned, by the coverage in benchmarks/README.md.)
A size with one run is a cluster of its own, so on a table of all different sizes this is the heteroscedastic sandwich.
"""

import numpy as np
from scipy import stats

from scaling.objective import Loss, finite

NAIVE = 1.0  # degrees of freedom of the naive variance that are pooled with the robust one
SATURATED = 0.02  # share of a size's noise left in its residuals, below which they say nothing of it


def influence(loss: Loss, residual, jacobian, slope):
  """(effect of each row's psi on the quantity [lanes, rows], naive variance [lanes]).

  residual: [lanes, rows]. jacobian: [lanes, rows, P]. slope: the quantity's gradient in the same coordinates, [lanes, P].
  """
  rows, free = residual.shape[-1], slope.shape[-1]
  smoothed, psi = loss.smoothed(residual, free), loss.psi(residual)
  bread = np.linalg.pinv(finite(jacobian.mT @ (jacobian * smoothed[..., None])), hermitian=True)
  plain = np.linalg.pinv(finite(jacobian.mT @ jacobian), hermitian=True)
  effect = (jacobian @ (bread @ slope[..., None]))[..., 0]
  along = (slope[:, None, :] @ plain @ slope[..., None])[:, 0, 0]
  naive = along * (psi ** 2).sum(-1) / (rows - free) / np.maximum(smoothed.mean(-1), 1e-300) ** 2
  return effect, naive


def adjusted(values, jacobian, groups):
  """values [lanes, rows] times (1 - hat matrix)^-1/2 of their group, which makes residuals as wide as the noise."""
  plain = np.linalg.pinv(finite(jacobian.mT @ jacobian), hermitian=True)
  eigen, vectors = np.linalg.eigh(plain)
  root = vectors * np.sqrt(np.maximum(eigen, 0.0))[:, None, :]
  out = np.array(values, float)
  for rows in groups:
    left, share, _ = np.linalg.svd(finite(jacobian[:, rows] @ root), full_matrices=False)
    rest = 1.0 - np.minimum(share ** 2, 1.0)
    scale = np.where(rest > SATURATED, np.maximum(rest, SATURATED) ** -0.5, 0.0) - 1.0
    part = (left.mT @ out[:, rows, None])[..., 0]
    out[:, rows] += (left @ (scale * part)[..., None])[..., 0]
  return out


def by_group(labels) -> list[np.ndarray]:
  """Row indices of each label."""
  order = np.argsort(labels, kind='stable')
  return np.split(order, np.flatnonzero(np.diff(np.asarray(labels)[order])) + 1)


@np.errstate(all='ignore')
def spread(loss: Loss, residual, jacobian, slope, labels) -> tuple[np.ndarray, np.ndarray]:
  """(naive variance over robust variance, degrees of freedom of the robust one), one a lane; see `influence`.

  labels: [rows], equal where rows err together.
  """
  groups = by_group(labels)
  effect, naive = influence(loss, residual, jacobian, slope)
  plain = np.linalg.pinv(finite(jacobian.mT @ jacobian), hermitian=True)
  weight = adjusted((jacobian @ (plain @ slope[..., None]))[..., 0], jacobian, groups)
  scaled = effect * adjusted(loss.psi(residual), jacobian, groups)
  begins = np.cumsum([0, *(len(rows) for rows in groups[:-1])])
  order = np.concatenate(groups)
  together = np.add.reduceat(scaled[:, order], begins, axis=-1)
  robust = (together ** 2).sum(-1)
  # trace(Q)^2 / trace(Q^2) of Q = B'B, whose columns are the residuals of the groups' weights
  own = np.add.reduceat((weight ** 2)[:, order], begins, axis=-1)
  through = np.add.reduceat((jacobian * weight[..., None])[:, order], begins, axis=1)
  taken = np.einsum('lgi,lij,lgj->lg', through, plain, through)
  inner = plain @ (through.mT @ through)
  square = (own ** 2).sum(-1) - 2.0 * (own * taken).sum(-1) + np.einsum('lij,lji->l', inner, inner)
  degrees = np.clip((own - taken).sum(-1) ** 2 / np.maximum(square, 1e-300), 0.5, residual.shape[-1])
  pooled = (degrees * robust + NAIVE * naive) / (degrees + NAIVE)
  ratio = naive / np.maximum(pooled, 1e-300)
  sound = np.isfinite(ratio) & np.isfinite(degrees) & (naive > 0)
  return np.where(sound, ratio, 1.0), np.where(sound, degrees + NAIVE, residual.shape[-1] - slope.shape[-1])


def limit(level: float, degrees):
  """Quantile of F(1, degrees), beyond which a profile's statistic is significant."""
  return stats.f.ppf(level, 1, degrees)
