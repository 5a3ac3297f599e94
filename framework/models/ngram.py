"""N-grams, counted by experiments.count: no network, so only the ladder and compress take them."""

from collections.abc import Callable
import pathlib
from typing import Any

from foundation.errors import ConfigError
from framework.baselines import ngram
from framework.coding import predictors


def build(config: Any, vocabulary: int):
  raise ConfigError("model.name is 'ngram', which is counted by experiments.count and not trained; nearest is 'markov'")


def predictor(workdir: pathlib.Path) -> tuple[Any, Callable[[int], predictors.Counted]]:
  """(the arrays that decide what is predicted, rows -> predictor) of the counted run in `workdir`."""
  model = ngram.load(workdir / 'ngram')
  return [vars(order) for order in model.orders], lambda rows: predictors.Counted(model, rows)
