"""Every setting of a run, and the checks that need no device and no file.

A config file returns a `Config`, flags such as `--config.model.layers=6` overwrite its fields, and what the user wrote
stays as it was written. `resolve` gives the frozen value that everything below the launchers receives: derived settings
filled in, and one `ConfigError` line for whatever does not go together. Bounds, choices and help stand at the field.
"""

import copy
import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from foundation import entries
from foundation.errors import ConfigError, nearest
from framework import expressions, models
from framework.models import rope
from framework.training import losses, optimizers, schedules


def setting(default: Any, help: str, *,  # pylint: disable=redefined-builtin
            low: float | None = None, high: float | None = None, choices: Sequence[str] = (), how: bool = False,
            beside: bool = False, rate: bool = False) -> Any:
  """A field of a section: its default, what it means, and the values that it may take, `low` and `high` among them.

  A setting decides what a run computes, and a run goes on with that value alone, unless it is one of these:
  how: it says how a run is computed and not what it computes: a run may go on with another value, to rounding the same.
  beside: it changes no step: what is logged, kept and evaluated, and where the text lies, whose digest is compared.
  rate: the steps and their rates: another value may be given from a checkpoint on up to which the rates are the same.
  """
  return dataclasses.field(default=default, metadata={'help': help, 'low': low, 'high': high, 'choices': choices,
                                                      'how': how, 'beside': beside, 'rate': rate})


TOKENIZERS = ('bytes', 'chars', 'bpe')  # whatever else data.tokenizer says is a path
GATED = ('swiglu', 'geglu')  # activations with a gate
BIASED = ('qkv', 'out', 'feedforward', 'norm')  # parts of a layer that may have a bias


class Section:
  """Settings that may be changed until they are resolved; a copy of resolved ones may be changed again.

  Slots make setting a field that does not exist an error.
  """
  __slots__ = ('_resolved',)
  __dataclass_fields__: ClassVar[dict[str, dataclasses.Field]]  # every section is a dataclass

  def __setattr__(self, name: str, value: Any) -> None:
    if getattr(self, '_resolved', False):
      raise dataclasses.FrozenInstanceError(f'{name} of a resolved config; change a copy and resolve that')
    object.__setattr__(self, name, value)

  def __deepcopy__(self, memo: dict[int, Any]) -> 'Section':
    return type(self)(*(copy.deepcopy(getattr(self, field.name), memo) for field in dataclasses.fields(self)))


@dataclasses.dataclass(slots=True, unsafe_hash=True)
class Model(Section):
  name: str = setting('decoder', 'a file of framework/models, or the path of one')
  layers: int = setting(4, 'blocks, each with parameters of its own (N)', low=1, high=1000)
  width: int = setting(128, 'of the stream between the blocks (D)', low=1, high=10**6)
  heads: int = setting(4, 'of attention (H)', low=1, high=10**4)
  kv_heads: int = setting(0, 'heads of keys and values, each read by as many query heads (G); 0: heads',
                          low=0, high=10**4)
  head_width: int = setting(0, 'of a query, key and value (K); 0: width / heads', low=0, high=10**6)
  feedforward: int = setting(0, 'width inside a feed-forward layer (F); 0: 4 widths, or 8/3 with a gate (to a '
                             'multiple of 8)', low=0, high=10**7)
  position: str = setting('rope', 'how a token knows its place', choices=('rope', 'learned', 'sinusoidal', 'none'))
  rope_base: float = setting(10000.0, 'longest wave of rope, in tokens over 2 pi', low=1.0, high=1e12)
  rope_share: float = setting(1.0, 'of the channels of a head, the first ones, that rope rotates', low=0.01, high=1.0)
  rope_scaling: str = setting('', "stretched waves of rope, see framework/models/rope.py: as 'linear:factor=4'; '': none")
  rope_base_local: float = setting(0.0, 'of the layers that read a sliding window, whose waves are not stretched; 0: as '
                                   'the others', low=0.0, high=1e12)
  sliding_window: int = setting(0, 'tokens that attention reads, the newest, itself included; 0: all', low=0, high=2**24)
  global_every: int = setting(0, 'each layer at a multiple of this reads all in spite of a sliding window; 0: none does',
                              low=0, high=1000)
  relative_bias: int = setting(0, 'farthest distance with its own bias on the attention logits, one a head and layer; '
                               '0: none', low=0, high=10**6)
  mask: str = setting('causal', 'what a token reads; strict: not itself', choices=('causal', 'strict', 'bidirectional'))
  attention_scale: str = setting('sqrt', 'factor of the logits: 1 / sqrt of the head width, one, or log of the keys in '
                                 'view', choices=('sqrt', 'one', 'log'))
  norm: str = setting('rmsnorm', 'of each branch and at the end', choices=('rmsnorm', 'layernorm', 'none'))
  norm_epsilon: float = setting(1e-5, 'added to the mean square', low=1e-12, high=1.0)
  norm_scale: bool = setting(True, 'a norm has a learned factor a channel')
  norm_place: str = setting('before', 'of a branch: what it reads, what it writes, or both',
                            choices=('before', 'after', 'both'))
  query_norm: str = setting('none', 'RMSNorm of queries and keys: of each head, or of all together',
                            choices=('none', 'head', 'whole'))
  parallel: bool = setting(False, 'attention and feed-forward read the same stream, not one what the other wrote')
  activation: str = setting('gelu', 'of feed-forward layers; gelu in its tanh form, relu2 the square of relu, swiglu and '
                            'geglu with a gate', choices=('gelu', 'gelu_exact', 'relu', 'relu2', 'swiglu', 'geglu'))
  bias: bool = setting(False, 'on the projections and norms of bias_on')
  bias_on: str = setting('all', 'which have one with model.bias: all, or some of qkv,out,feedforward,norm')
  embedding_scale: float = setting(1.0, 'factor of embeddings where they are read', low=1e-6, high=1e6)
  tied_head: bool = setting(True, 'the output head is the transposed embedding')
  loops: int = setting(1, 'times that the layers run, with the same parameters', low=1, high=10**6)
  dropout: float = setting(0.0, 'share of channels left out in training', low=0.0, high=0.99)
  dtype: str = setting('float32', 'of the arithmetic', choices=('float32', 'bfloat16'))
  param_dtype: str = setting('float32', 'of the parameters; float32 in training', choices=('float32', 'bfloat16'))
  attention: str = setting('auto', 'a backend of pallas_kernels.attention, or auto', how=True)
  sequence: str = setting('gathered', 'how attention reads a window that training.mesh splits over devices: all keys at '
                          'once, or those of one device after the other', choices=('gathered', 'ring'), how=True)
  scan: bool = setting(False, 'one compiled layer run N times: compiles faster, steps slower on a CPU', how=True)
  remat: str = setting('none', 'what the backward pass computes again; dots: all but matrix products',
                       choices=('none', 'dots', 'full'), how=True)


@dataclasses.dataclass(slots=True, unsafe_hash=True)
class Tiered(Section):
  """Read by model.name = tiered, whose highest tier is a decoder of the section `model`."""
  tiers: int = setting(2, 'decoders above each other (T)', low=1, high=100)
  widths: str = setting('', "of the tiers, lowest first, as in '64,128'; '': all model.width")
  layers: str = setting('', "of the tiers, lowest first; '': all model.layers")
  steps: str = setting('', "training steps of the tiers, lowest first; '': training.steps for each")
  period: int = setting(64, 'tokens from a start to the next (P)', low=1, high=2**24)
  rollout: int = setting(16, 'tokens of a rollout (R)', low=1, high=2**24)
  samples: int = setting(1, 'rollouts a start (K)', low=1, high=10**6)
  starts: str = setting('period', 'where rollouts start: every period, after a token, or where tier 1 is unsure',
                        choices=('period', 'trigger', 'entropy'))
  most_starts: int = setting(0, 'of a window, the first ones; 0: window / period', low=0, high=2**24)
  random_phase: bool = setting(True, 'windows have their first start at a random place of the first period')
  trigger: int = setting(0, 'token after which a trigger start stands', low=0, high=2**24)
  entropy: float = setting(3.0, "bits of tier 1's prediction from which on an entropy start stands", low=0.0, high=64.0)
  delay: int = setting(0, 'tokens from a start to the first that may read its rollouts', low=0, high=2**24)
  layout: str = setting('stream', 'how a tier reads rollouts: between the tokens, beside them by their stamps, or by '
                        'cross-attention', choices=('stream', 'stamp', 'cross'))
  read: str = setting('tokens', 'what cross reads: tokens, or hidden states of the tier below',
                      choices=('tokens', 'hidden'))
  both_ways: bool = setting(False, 'stamp: the tokens of a rollout read each other in both directions')
  across: bool = setting(True, 'stamp: rollouts read other rollouts')
  last: int = setting(0, 'stamp: only the rollouts of so many newest starts are read; 0: all', low=0, high=2**24)
  first_bias: float = setting(0.0, "stamp: the learned bias of rollouts' attention weights begins here; -20 is nearly "
                              'unread', low=-1e4, high=1e4)
  content: str = setting('own', 'what the top tier reads in the places of rollouts',
                         choices=('own', 'filler', 'shuffled', 'other_document', 'oracle', 'corrupted'))
  corruption: float = setting(0.5, "corrupted: share of the true future's tokens that the tier below replaces by its "
                              'own', low=0.0, high=1.0)
  temperature: float = setting(1.0, 'of the rollouts', low=0.0, high=1e4)
  top_k: int = setting(0, 'of the rollouts; 0: all tokens', low=0, high=2**24)
  rollout_dropout: float = setting(0.15, 'share of starts whose rollouts a tier in training does not see',
                                   low=0.0, high=1.0)
  warm_start: bool = setting(True, 'a tier of the size of the tier below begins as a copy of it')
  memorisation: float = setting(0.01, "greatest excess of rollouts' accuracy on training text over held-out text",
                                low=0.0, high=1.0)
  cached: bool = setting(False, 'rollouts of the training text are written to disk before a tier is trained')
  folds: int = setting(0, 'cross-fitting: a fold of the documents has rollouts by tiers that were not trained on it; '
                       '0: none', low=0, high=10**4)


@dataclasses.dataclass(slots=True, unsafe_hash=True)
class Encoder(Section):
  """Read by model.name = encoder_decoder; its decoder is that of the section `model`, predicting data.stride tokens."""
  kind: str = setting('bidirectional', 'which way it reads; prefix: one stack for both',
                      choices=('bidirectional', 'right_to_left', 'right_to_left_scan', 'prefix'))
  layers: int = setting(0, '0: model.layers; the scan has one', low=0, high=1000)
  width: int = setting(0, '0: model.width', low=0, high=10**6)


@dataclasses.dataclass(slots=True, unsafe_hash=True)
class Data(Section):
  path: str = setting('',
                      "file, folder or glob of .txt .py .md .jsonl (also .gz .bz2 .xz .zst), .parquet .arrow .feather, "
                      "here or at a URL that fsspec reads; '': the Python standard library's sources", beside=True)
  validation_path: str = setting('', "'': a tenth of `path` is held out", beside=True)
  mixture: str = setting('', "texts in place of `path`, each with its share of the windows, as in "
                         "'web=pages/:0.7,code=src/:0.3'", beside=True)
  field: str = setting('text', 'of a row of .jsonl or a table: where its text is')
  bad_rows: str = setting('refuse', 'what becomes of rows without such a text', choices=('refuse', 'skip'))
  ids: str = setting('', "the files are arrays of token ids that data.tokenizer made (.bin, .npy), of this type; file: "
                     "each says its own (.npy, Megatron's .idx); '': they are texts",
                     choices=('', 'file', 'uint16', 'uint32', 'int32', 'int64'))
  task: str = setting('', 'a synthetic language in place of text: a file of framework/data/tasks, or the path of one, '
                      'with settings, as in zipf_pairs:noise=0.1,symbols=32')
  tokens: int = setting(0, 'of the training text, from its beginning: fewer are read for more epochs; 0: all',
                        low=0, high=2**40)
  tokenizer: str = setting('bytes', "what a token is: bytes, chars, bpe, or the path of a tokenizer's file, as "
                           'tokenizer.json')
  vocabulary: int = setting(4096, 'of bpe, the end-of-document token included', low=257, high=2**24)
  window: int = setting(256, 'tokens read (L)', low=1, high=2**24)
  stride: int = setting(0, 'tokens predicted per window (S <= L); 0: the window', low=0, high=2**24)
  scored: str = setting('stride', 'targets of a window: its stride, each token once an epoch, or all of it',
                        choices=('stride', 'window'))
  unscored: float = setting(0.0, 'share of each window whose first targets are not scored', low=0.0, high=0.99)
  random_phase: bool = setting(False, 'each epoch cuts the text elsewhere')
  folds: int = setting(0, 'parts of the training text, of whole documents; 0: none', low=0, high=10**4)
  left_out: int = setting(0, 'of the folds, the one that is not trained on', low=0, high=10**4)
  packed: bool = setting(True, 'attention stays inside a document')
  cache: str = setting('', "folder of tokenised corpora; '': $XDG_CACHE_HOME/lemma, else ~/.cache/lemma", beside=True)


@dataclasses.dataclass(slots=True, unsafe_hash=True)
class Optimizer(Section):
  name: str = setting('adamw', 'a file of framework/training/optimizers, or the path of one')
  learning_rate: float = setting(1e-3, 'at the end of the warm-up', low=0.0, high=100.0)
  final_learning_rate: float = setting(1e-4, 'at the last step', low=0.0, high=100.0, rate=True)
  warmup_steps: int = setting(100, 'steps of linear growth of the rate', low=0, high=10**9)
  schedule: str = setting('cosine',
                          'a file of framework/training/schedules, or the path of one; after a linear warm-up',
                          rate=True)
  decay_fraction: float = setting(0.2, 'of the steps, at the end (wsd)', low=0.0, high=1.0, rate=True)
  rewarm: str = setting('', "steps at which a run that had ended goes on, as '300' or '300,600': from each the rate "
                        "grows again over the warm-up, and the schedule begins anew; '': none", rate=True)
  beta1: float = setting(0.9, 'of the mean of gradients', low=0.0, high=0.999999)
  beta2: float = setting(0.99, 'of the mean of squares, or of lion\'s second mean', low=0.0, high=0.999999)
  epsilon: float = setting(1e-8, 'added to the root of the mean square', low=0.0, high=1.0)
  weight_decay: float = setting(0.1, 'decoupled, on matrices only', low=0.0, high=100.0)
  clip_norm: float = setting(1.0, 'of the whole gradient; 0: never', low=0.0, high=1e9)


@dataclasses.dataclass(slots=True, unsafe_hash=True)
class Training(Section):
  steps: int = setting(1000, 'of the optimizer', low=1, high=10**9, rate=True)
  batch: int = setting(16, 'windows per step, over all devices and hosts', low=1, high=10**7)
  loss: str = setting('cross_entropy', 'what is minimised: a file of framework/training/losses, or the path of one')
  accumulation: int = setting(1, 'microbatches per step', low=1, high=10**6)
  partition: str = setting('pmap', 'how a step is spread: a replica a device, or over training.mesh',
                           choices=('pmap', 'mesh'), how=True)
  mesh: str = setting('data=-1', 'devices along data (replicas), fsdp (parameters split too), tensor (heads and channels '
                      "split) and sequence (windows split), as 'data=-1,fsdp=8'; -1: those that are left", how=True)
  devices: int = setting(0, 'simulated devices on a CPU; 0: one per core, or as many as the mesh has', low=0, high=4096,
                         how=True)
  seed: int = setting(0, 'of parameters, batches and dropout', low=0, high=2**32 - 1)
  log_every: int = setting(10, 'steps between rows of metrics.jsonl', low=1, high=10**9, beside=True)
  skip_nonfinite: int = setting(0, 'steps with NaN or infinity that may be skipped; 0: the first stops the run',
                                low=0, high=10**9)
  tensorboard: bool = setting(False, 'also write tensorboard/', beside=True)
  check_gradient: bool = setting(False, 'before the first step: gradients of tables equal those computed without a '
                                 'scatter, which compilers have got wrong; compiles the gradient twice more', how=True)
  deterministic: bool = setting(False, 'on a GPU: only operations that give the same bits each time, and no tuning; '
                                'slower. CPUs and TPUs do so anyway', how=True)


@dataclasses.dataclass(slots=True, unsafe_hash=True)
class Evaluation(Section):
  every_steps: int = setting(0, 'steps from one to the next; 0: only at the end', low=0, high=10**9, beside=True)
  windows: int = setting(0, 'in training and at its end, evenly spread over the held-out text; 0: all',
                         low=0, high=10**9, beside=True)
  batch: int = setting(0, 'windows per batch; 0: the training batch', low=0, high=10**7, beside=True)
  stride: int = setting(0, "tokens predicted per window; 0: the data's stride", low=0, high=2**24, beside=True)


@dataclasses.dataclass(slots=True, unsafe_hash=True)
class Checkpoint(Section):
  every_steps: int = setting(200, 'steps from one to the next; 0: only at the end', low=0, high=10**9, beside=True)
  keep: int = setting(2, 'how many, the newest', low=1, high=10**6, beside=True)
  keep_every: int = setting(0, 'besides, every checkpoint at a multiple of this; 0: none', low=0, high=10**9,
                            beside=True)
  patience: float = setting(600.0, 'seconds that a finished run waits for room on a full disk', low=0.0, high=1e7,
                            beside=True)
  at_decay: bool = setting(False, 'wsd: also one where the decay begins, which is kept; longer runs can branch from it',
                           beside=True)


@dataclasses.dataclass(slots=True, unsafe_hash=True)
class Config(Section):
  model: Model = dataclasses.field(default_factory=Model)
  data: Data = dataclasses.field(default_factory=Data)
  optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
  training: Training = dataclasses.field(default_factory=Training)
  evaluation: Evaluation = dataclasses.field(default_factory=Evaluation)
  checkpoint: Checkpoint = dataclasses.field(default_factory=Checkpoint)
  tiered: Tiered = dataclasses.field(default_factory=Tiered)
  encoder: Encoder = dataclasses.field(default_factory=Encoder)


def sections(config: Config) -> dict[str, Section]:
  """The sections of a config by name."""
  return {field.name: getattr(config, field.name) for field in dataclasses.fields(Config)}


def _of_kind(kind: str) -> frozenset[str]:
  """The keys of the settings of a kind, see `setting`."""
  return frozenset(f'{section.name}.{field.name}' for section in dataclasses.fields(Config)
                   for field in dataclasses.fields(section.default_factory)  # type: ignore[arg-type]  # a class
                   if field.metadata[kind])


HOW, BESIDE, RATE = map(_of_kind, ('how', 'beside', 'rate'))


def flatten(config: Config) -> dict[str, Any]:
  """{'model.layers': 4, ...} in the order of the fields."""
  return {f'{name}.{field.name}': getattr(section, field.name) for name, section in sections(config).items()
          for field in dataclasses.fields(section)}


def flatten_section(section: Section) -> dict[str, Any]:
  """{'layers': 4, ...} in the order of the fields."""
  return {field.name: getattr(section, field.name) for field in dataclasses.fields(section)}


def assign(config: Config, values: Mapping[str, Any]) -> Config:
  """The config itself, with {'model.layers': 4, ...} set. Raises ConfigError on a key that no config has."""
  known = flatten(config)
  for key, value in values.items():
    if key not in known:
      raise ConfigError(f"config has no key '{key}'{nearest(key, known)}")
    section, name = key.split('.')
    setattr(getattr(config, section), name, value)
  return config


def from_flat(flat: Mapping[str, Any]) -> Config:
  """The inverse of `flatten`; keys that are absent keep their defaults. Raises ConfigError on an unknown key."""
  return assign(Config(), flat)


def changed(config: Config, values: Mapping[str, Any]) -> Config:
  """A resolved copy of a config with {'model.layers': 4, ...} in it. Raises ConfigError."""
  return resolve(assign(copy.deepcopy(config), values))


def check_fields(config: Config) -> None:
  """Types, bounds and choices of every single field; a whole number becomes a float where one is expected."""
  for field in dataclasses.fields(Config):
    section = getattr(config, field.name)
    if type(section) is not field.default_factory:
      raise ConfigError(f'{field.name} is {type(section).__name__}; expected framework.config.'
                        f'{field.default_factory.__name__}')  # type: ignore[union-attr]  # a class
    check_section(field.name, section)


def check_section(name: str, section: Section) -> None:
  """As `check_fields`, of one section."""
  for field in dataclasses.fields(section):
    check_field(f'{name}.{field.name}', section, field)


def check_field(key: str, section: Section, field: dataclasses.Field) -> None:
  """Raises ConfigError if a setting is of another type, or none of its choices, or out of its bounds."""
  value, expected, about = getattr(section, field.name), type(field.default), field.metadata
  whole = expected is float and type(value) is int
  if type(value) is not expected and not whole:
    raise ConfigError(f'{key} is {value!r}; expected {expected.__name__}')
  if about['choices'] and value not in about['choices']:
    raise ConfigError(f"{key} is '{value}'; expected one of {', '.join(about['choices'])}"
                      f"{nearest(value, about['choices'])}")
  low, high = about['low'], about['high']
  if low is not None and not low <= value <= high:  # NaN fails too
    raise ConfigError(f'{key} is {value}; expected {low} to {high}, nearest is '
                      f'{low if value != value or value < low else high}')
  if whole:  # after the bounds: a huge integer is no float
    setattr(section, field.name, float(value))


def divisors_near(value: int, total: int) -> str:
  """The divisors of `total` around `value`, as words."""
  all_divisors = [d for d in range(1, total + 1) if total % d == 0]
  below = [d for d in all_divisors if d <= value][-1:]
  above = [d for d in all_divisors if d > value][:1]
  return ' or '.join(str(d) for d in below + above)


def check_model(m: Model) -> None:
  """Raises ConfigError for settings of the section `model` that do not go together."""
  if m.width % m.heads and not m.head_width:
    raise ConfigError(f'model.heads is {m.heads}; expected a divisor of model.width {m.width}, nearest is '
                      f'{divisors_near(m.heads, m.width)}')
  if m.heads % m.kv_heads:
    raise ConfigError(f'model.kv_heads is {m.kv_heads}; expected a divisor of model.heads {m.heads}, nearest is '
                      f'{divisors_near(m.kv_heads, m.heads)}')
  if m.position == 'rope' and m.head_width % 2:
    raise ConfigError(f'model.head_width is {m.head_width}; rope needs an even one, nearest is {m.head_width + 1}')
  if m.position == 'rope' and not m.head_width and (m.width // m.heads) % 2:
    raise ConfigError(f'model.width / model.heads is {m.width // m.heads}; rope needs an even head width, nearest is '
                      f'model.width {m.width + m.heads}')
  rope.read(m.rope_scaling)
  for key in ('rope_share', 'rope_scaling', 'rope_base_local'):
    if m.position != 'rope' and getattr(m, key) != getattr(Model(), key):
      raise ConfigError(f"model.{key} is {getattr(m, key)!r} with model.position '{m.position}'; expected 'rope'")
  for key in ('global_every', 'rope_base_local'):
    if getattr(m, key) and not m.sliding_window:
      raise ConfigError(f'model.{key} is {getattr(m, key)} without model.sliding_window; expected 0')
  if m.sliding_window and m.mask == 'bidirectional':
    raise ConfigError(f"model.sliding_window is {m.sliding_window} with model.mask 'bidirectional'; expected 0")
  if 0 < m.rope_base_local < 1:
    raise ConfigError(f'model.rope_base_local is {m.rope_base_local}; expected 0, or at least 1')
  parts = m.bias_on.split(',')
  if m.bias_on != 'all' and (set(parts) - set(BIASED) or len(set(parts)) < len(parts)):
    wrong = next((part for part in parts if part not in BIASED), parts[0])
    raise ConfigError(f"model.bias_on is '{m.bias_on}'; expected all, or some of {','.join(BIASED)}"
                      f'{nearest(wrong, BIASED)}')
  if m.bias_on != 'all' and not m.bias:
    raise ConfigError(f"model.bias_on is '{m.bias_on}' with model.bias False; expected model.bias=True")
  if m.position == 'sinusoidal' and m.width % 2:
    raise ConfigError(f'model.width is {m.width}; sinusoidal positions need an even one, nearest is {m.width + 1}')


def check_mixture(d: Data) -> None:
  """Raises ConfigError for what a mixture does not go with."""
  expressions.mixture(d.mixture)
  for key, wanted in (('path', ''), ('validation_path', ''), ('task', ''), ('tokens', 0), ('folds', 0),
                      ('random_phase', False)):
    if getattr(d, key) != wanted:
      raise ConfigError(f'data.{key} is {getattr(d, key)!r} beside data.mixture, which does not honour it; expected one '
                        'of the two')


def check_data(d: Data, e: Evaluation) -> None:
  """Raises ConfigError for strides beyond the window and folds that do not exist."""
  if d.mixture:
    check_mixture(d)
  if d.ids and d.tokenizer in ('chars', 'bpe'):
    raise ConfigError(f"data.tokenizer is '{d.tokenizer}', which is made from a text, with data.ids '{d.ids}'; expected "
                      "the tokenizer that made the ids, nearest is 'bytes'")
  for key, stride in (('data.stride', d.stride), ('evaluation.stride', e.stride)):
    if stride > d.window:
      raise ConfigError(f'{key} is {stride}; expected at most data.window {d.window}')
  if d.tokenizer not in TOKENIZERS and not os.path.isabs(d.tokenizer):
    raise ConfigError(f"data.tokenizer is '{d.tokenizer}'; expected one of {', '.join(TOKENIZERS)}, or the path of a file"
                      f'{nearest(d.tokenizer, TOKENIZERS)}')
  if d.left_out and d.left_out >= d.folds:
    raise ConfigError(f'data.left_out is {d.left_out}; expected a fold of data.folds {d.folds}, nearest is '
                      f'{max(0, d.folds - 1)}')
  if d.folds == 1:
    raise ConfigError('data.folds is 1, which leaves nothing to train on; expected 0 or at least 2')
  if d.folds and d.random_phase:
    raise ConfigError('data.random_phase is True with data.folds, whose windows stay where they are; expected False')


def check_training(o: Optimizer, t: Training, at_decay: bool) -> None:
  """Raises ConfigError for an optimizer, schedule or loss that there is not, and for steps that do not fit."""
  optimizers.find(o.name)
  losses.find(t.loss)
  if t.partition == 'pmap' and t.mesh.replace(' ', '') not in ('', 'data=-1'):
    raise ConfigError(f"training.mesh is '{t.mesh}' with training.partition 'pmap', which has data alone; expected "
                      "training.partition=mesh, nearest is training.mesh='data=-1'")
  schedule = schedules.find(o.schedule)
  expressions.segments(o.rewarm, o.warmup_steps, t.steps)
  if t.batch % t.accumulation:
    raise ConfigError(f'training.accumulation is {t.accumulation}; expected a divisor of training.batch {t.batch}, '
                      f'nearest is {divisors_near(t.accumulation, t.batch)}')
  if getattr(schedule, 'DECAYS', True) and o.final_learning_rate > o.learning_rate:
    raise ConfigError(f'optimizer.final_learning_rate is {o.final_learning_rate}; expected at most '
                      f'optimizer.learning_rate {o.learning_rate}')
  if at_decay and not hasattr(schedule, 'decay_start'):
    raise ConfigError("checkpoint.at_decay is True; expected an optimizer.schedule with a stable phase, such as 'wsd', "
                      f"with it, not '{o.schedule}'")
  if o.warmup_steps >= t.steps and o.warmup_steps > 0:
    raise ConfigError(f'optimizer.warmup_steps is {o.warmup_steps}; expected fewer than training.steps {t.steps}, '
                      f'nearest is {t.steps - 1}')


def resolve(config: Config) -> Config:
  """The config that a run has: derived settings filled in, checked, frozen and hashable. The argument stays as it is.

  Raises:
    ConfigError: whatever needs no device and no file to be seen wrong.
  """
  c = copy.deepcopy(config)
  check_fields(c)
  m, d, e = c.model, c.data, c.evaluation
  m.name, c.optimizer.name, c.optimizer.schedule, c.training.loss, d.task = map(entries.absolute, (
      m.name, c.optimizer.name, c.optimizer.schedule, c.training.loss, d.task))
  if d.tokenizer not in TOKENIZERS and (os.sep in d.tokenizer or '.' in d.tokenizer):
    d.tokenizer = os.path.abspath(os.path.expanduser(d.tokenizer))
  m.kv_heads = m.kv_heads or m.heads
  m.feedforward = m.feedforward or (4 * m.width if m.activation not in GATED else -(-8 * m.width // 24) * 8)
  d.stride = d.stride or d.window
  e.batch = e.batch or c.training.batch
  e.stride = e.stride or d.stride
  check_model(m)
  check_data(d, e)
  check_training(c.optimizer, c.training, c.checkpoint.at_decay)
  models.resolve(c)
  for section in (*sections(c).values(), c):
    object.__setattr__(section, '_resolved', True)
  return c


