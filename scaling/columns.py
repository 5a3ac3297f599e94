"""The columns that a law may read: their names, units, and the headers under which tables have them."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Column:
  """One column of a table of runs.

  key: how a law reads it, x[key]. name: its standard header. headers: others under which it is found, in order of
  preference. log: x holds its natural logarithm, so that its values must be positive. positive: they must be anyway.
  """
  key: str
  name: str = ''
  unit: str = ''
  headers: tuple[str, ...] = ()
  log: bool = True

  def __post_init__(self):
    if not self.name:
      object.__setattr__(self, 'name', self.key)

  def of(self, values) -> np.ndarray:
    """What x holds for these values."""
    values = np.asarray(values, float)
    return np.log(values) if self.log else values


KNOWN = {column.key: column for column in (
    Column('n', 'N', 'parameters', ('params', 'n_params', 'num_params', 'parameters', 'N_noembed', 'params_noembed',
                                    'model_size', 'N_active', 'active_params', 'params_active')),
    Column('d', 'D', 'tokens', ('tokens', 'n_tokens', 'num_tokens', 'train_tokens')),
    Column('u', 'U', 'unique tokens', ('tokens_unique', 'unique_tokens')),
    Column('k', 'K', 'experts', ('experts', 'n_experts', 'num_experts')),
    Column('c', 'C', 'FLOPs', ('flops', 'compute', 'flops_train', 'flops_total')),
    Column('t', 'N_total', 'parameters of all experts', ('params_all', 'total_params')),
    Column('g', 'granularity', 'experts that replace a feed-forward layer'),
    Column('lr', 'lr', 'learning rate', ('learning_rate', 'peak_lr', 'max_lr', 'lr_peak', 'lr_max',
                                         'peak_learning_rate', 'max_learning_rate', 'optimizer.learning_rate')),
    Column('batch', 'batch', 'tokens a step', ('batch_tokens', 'batch_size_tokens', 'tokens_per_step', 'batch_size',
                                               'global_batch_size', 'bs', 'training.batch')),
    Column('bits', 'bits', 'bits of a weight', ('precision_bits', 'bits_per_weight', 'weight_bits'), log=False),
    Column('share', 'share', 'share of a mixture', ('mixture_share', 'fraction', 'mix'), log=False),
    Column('task', 'task_size', 'tokens of the task', ('task_tokens', 'finetune_tokens')))}
SELECTED = ('lr', 'batch')  # a cell is its best run over these, unless the law reads them
