"""The LSTM (Hochreiter and Schmidhuber 1997)."""

import flax.linen as nn

from framework import config as config_lib
from framework.models.recurrent import Recurrent


def build(config: config_lib.Config, vocabulary: int) -> Recurrent:
  return Recurrent(config.model, vocabulary, config.data.window, nn.OptimizedLSTMCell, maps=8)
