"""The extension point: a fork adds its model to MODELS, and the training loop, evaluation and sampler run it."""

import jax
import jax.numpy as jnp

from framework import config as config_lib
from framework.models import decoder, markov, masked, recurrent
from pallas_kernels import attention

MODELS = {'decoder': decoder.Decoder, 'rnn': recurrent.Recurrent, 'lstm': recurrent.Recurrent,
          'birnn': recurrent.Bidirectional, 'masked': masked.build, 'markov': markov.Markov}


def build(model: config_lib.Model, vocabulary: int, window: int):
  """The module of `model.name` for a vocabulary of V tokens and windows of L tokens."""
  if model.name not in MODELS:
    raise config_lib.ConfigError(f"model.name is '{model.name}'; expected one of {', '.join(MODELS)}"
                                 f'{config_lib.nearest(model.name, MODELS)}')
  backends = ('auto', *attention.IMPLEMENTATIONS)
  if model.attention not in backends:
    raise config_lib.ConfigError(f"model.attention is '{model.attention}'; expected one of {', '.join(backends)}"
                                 f'{config_lib.nearest(model.attention, backends)}')
  return MODELS[model.name](model, vocabulary, window)


def init(module, key: jax.Array):
  """The module's parameters, a tree of arrays."""
  one = jnp.ones((1, 1), jnp.int32)
  return module.init(key, one, one * 0, one)['params']
