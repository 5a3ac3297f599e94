"""Models, one file each: `model.name=NAME`, or the path of a file elsewhere.

A model is a file that holds

  build(config, vocabulary) -> contract.Model   of a resolved config, for a vocabulary of V tokens

and may hold

  resolve(config) -> None         fills in settings of its own; raises ConfigError for what does not go together
  stages(config) -> [contract.Stage]   the runs of its training, in order; without it there is one
  result(results, stages) -> dict  what the run's result.json says of the results of the stages that were begun

`framework.models.contract` says what a model answers, `framework.models.decoder.Decoder` is the one to start from: a
variant is a subclass with a `block` of its own.
"""

import sys
import types
from typing import Any

from foundation import entries


def find(name: str) -> types.ModuleType:
  """The file of the model of that name or path. Raises ConfigError if there is none, or half of one."""
  return entries.find(sys.modules[__name__], name, 'model.name', ('build(config, vocabulary)',),
                      ('resolve(config)', 'stages(config)', 'result(results, stages)'))


def entry(config: Any) -> types.ModuleType:
  """The file of the model that a config names. Raises ConfigError."""
  return find(config.model.name)


def resolve(config: Any) -> None:
  """Has the model that a config names fill in and check what concerns it alone. Raises ConfigError."""
  if hasattr(entry(config), 'resolve'):
    entry(config).resolve(config)


def build(config: Any, vocabulary: int) -> Any:
  """The model that a resolved config describes, for a vocabulary of V tokens. Raises ConfigError."""
  from framework.models import backends, contract  # they need JAX, which a refused config does not
  backends.check(config.model.attention)
  return contract.check(entry(config).build(config, vocabulary), config.model.name)


def stages(config: Any) -> list[Any]:
  """The runs of the training of a resolved config, in order; most models have one, in the run's own folder."""
  from framework.models import contract
  return entry(config).stages(config) if hasattr(entry(config), 'stages') else [contract.Stage('', config)]


def flops_train(config: Any, corpus: Any) -> float:
  """FLOPs of the whole training of a resolved config on a corpus: what a run costs before it is begun."""
  total = 0.0
  for stage in stages(config):
    c, model = stage.config, build(stage.config, corpus.tokenizer.size)
    total += stage.flops_before(corpus) + c.training.steps * c.training.batch * model.flops().train
  return total
