"""Is a generator's coin fair?"""

import numpy as np

CLAIM = 'Of many tosses of a pseudo-random coin about half are heads, in every seed.'
SOURCE = 'Bernoulli 1713, Ars Conjectandi'
RULE = 'In every seed the share of heads is within .05 of one half; otherwise the claim is not supported.'
SCALES = {'cpu': dict(tosses=2000), 'gpu': dict(tosses=10**6), 'paper': dict(tosses=10**8)}


def parts(settings):
  return ['tosses']


def run(part, seed, settings, show, folder):
  return {'heads': float(np.random.default_rng(seed).integers(2, size=settings['tosses']).mean())}


def verdict(results):
  heads = [numbers['heads'] for numbers in results['tosses'].values()]
  fair = max(abs(share - 0.5) for share in heads) < 0.05
  return {'numbers': {'heads': heads}, 'verdict': 'supported' if fair else 'not supported'}


def figure(results, axes):
  """The share of heads of each seed."""
  axes.plot([numbers['heads'] for numbers in results['tosses'].values()], 'o')
