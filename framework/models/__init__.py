"""The extension point: a fork adds its model to MODELS, and the training loop, evaluation and sampler run it."""

import importlib

import jax
import jax.numpy as jnp

from framework import config as config_lib
from framework.models import decoder, encoder_decoder, markov, masked, recurrent
from pallas_kernels import attention

MODELS = {'decoder': decoder.Decoder, 'rnn': recurrent.Recurrent, 'lstm': recurrent.Recurrent,
          'birnn': recurrent.Bidirectional, 'masked': masked.build, 'markov': markov.Markov}
OF_CONFIG = {'tiered': lambda *given: importlib.import_module('framework.tiered.model').build(*given),
             'encoder_decoder': encoder_decoder.build}  # need more than the section `model`
NAMES = (*MODELS, *OF_CONFIG)


def of_config(config: config_lib.Config, vocabulary: int):
  """The module that a checked config describes, for a vocabulary of V tokens."""
  if config.model.name not in OF_CONFIG:
    return build(config.model, vocabulary, config.data.window)
  check_attention(config.model)
  return OF_CONFIG[config.model.name](config, vocabulary)


def build(model: config_lib.Model, vocabulary: int, window: int):
  """The module of `model.name` for a vocabulary of V tokens and windows of L tokens."""
  if model.name not in MODELS:
    raise config_lib.ConfigError(f"model.name is '{model.name}'; expected one of {', '.join(NAMES)}"
                                 f'{config_lib.nearest(model.name, NAMES)}')
  check_attention(model)
  return MODELS[model.name](model, vocabulary, window)


def check_attention(model: config_lib.Model) -> None:
  """Raises ConfigError if there is no backend of that name."""
  backends = ('auto', *attention.IMPLEMENTATIONS)
  if model.attention not in backends:
    raise config_lib.ConfigError(f"model.attention is '{model.attention}'; expected one of {', '.join(backends)}"
                                 f'{config_lib.nearest(model.attention, backends)}')
  if model.attention != 'auto':
    try:
      importlib.import_module(attention.IMPLEMENTATIONS[model.attention])
    except ImportError as error:
      raise config_lib.ConfigError(f"model.attention is '{model.attention}', which needs {error.name}; expected it "
                                   "installed, nearest is 'auto'") from None


def init(module, key: jax.Array):
  """The module's parameters, a tree of arrays."""
  one = jnp.ones((1, 1), jnp.int32)
  return module.init(key, one, one * 0, one)['params']
