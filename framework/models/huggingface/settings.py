"""Reads a family's config.json key by key: what nobody has asked for at the end is unknown, and refused."""

from collections.abc import Mapping, Sequence
import math
from typing import Any

from foundation import reading
from foundation.errors import ConfigError, nearest
from foundation.printable import printable
from framework.models import rope

# Of training, of generation and of the files themselves: none of them changes a logit.
HARMLESS = frozenset('''
    _name_or_path architectures model_type transformers_version torch_dtype dtype auto_map tokenizer_class name_or_path
    bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id unk_token_id decoder_start_token_id mask_token_id
    use_cache cache_implementation initializer_range initializer_factor init_std embedding_initializer_range
    attention_dropout attention_probs_dropout_prob hidden_dropout hidden_dropout_prob classifier_dropout
    activation_dropout layerdrop embd_pdrop attn_pdrop embedding_dropout residual_dropout dropout
    return_dict return_dict_in_generate output_hidden_states output_attentions output_scores output_router_logits
    chunk_size_feed_forward id2label label2id num_labels problem_type task_specific_params finetuning_task prefix
    torchscript use_bfloat16 pruned_heads tie_encoder_decoder gradient_checkpointing pretraining_tp
    attn_implementation _attn_implementation _attn_implementation_autoset max_length min_length do_sample
    early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty
    length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences
    forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens
    begin_suppress_tokens tf_legacy_loss'''.split())
# Of every family, a key that has to have one of these values where it is there.
NEVER: dict[str, tuple] = {'is_encoder_decoder': (False,), 'add_cross_attention': (False, None), 'is_decoder': (False, True),
                           'cross_attention_hidden_size': (None,), 'quantization_config': (None,)}
ROPE_KEYS = frozenset(('rope_type', 'type', 'rope_theta', 'partial_rotary_factor', 'factor', 'low_freq_factor',
                       'high_freq_factor', 'original_max_position_embeddings', 'beta_fast', 'beta_slow',
                       'attention_factor', 'mscale', 'mscale_all_dim', 'truncate', 'finetuned'))


class Settings:
  """The content of a config.json; every method raises ConfigError in one line that names the key."""

  def __init__(self, hf: Mapping[str, Any]):
    self.hf, self.asked = hf, set(HARMLESS)
    for key, values in NEVER.items():
      self.only(key, *values)

  def get(self, key: str, kind: Any, default: Any) -> Any:
    """The value of a key, of a kind as in reading.misfit; absent or null it is the default."""
    self.asked.add(key)
    value = self.hf.get(key)
    if value is None:
      return default
    if wrong := reading.misfit(value, kind, key):
      raise ConfigError(f'config.json: {wrong}')
    return value

  def whole(self, key: str, default: int | None = None) -> int:
    """A positive whole number below 2^31; without a default it has to be there."""
    self.asked.add(key)
    value = self.hf.get(key)
    value = default if value is None and default is not None else value
    if type(value) is not int or not 1 <= value < 2**31:
      raise ConfigError(f'config.json has {key} {printable(repr(value), 60)}; expected a positive whole number below 2^31')
    return value

  def window(self, default: int | None = None) -> int | None:
    """sliding_window, null for none."""
    self.ignored('sliding_window')
    return default if self.hf.get('sliding_window') is None else self.whole('sliding_window')

  def number(self, key: str, default: float) -> float:
    return float(self.get(key, float, default))

  def flag(self, key: str, default: bool) -> bool:
    return self.get(key, bool, default)

  def only(self, key: str, *values: Any) -> Any:
    """The value of a key that can only be expressed where it is one of these; absent it is the first."""
    self.asked.add(key)
    value = self.hf.get(key, values[0])
    if not any(type(value) is type(one) and value == one for one in values):
      raise ConfigError(f"config.json has {key} {printable(repr(value), 60)}; expected {' or '.join(map(repr, values))}")
    return value

  def choice(self, key: str, table: Mapping[str, str], default: str) -> str:
    """What the table has for the value of a key."""
    return table[self.only(key, default, *(name for name in table if name != default))]

  def ignored(self, *keys: str) -> None:
    """Keys of a family that change no logit."""
    self.asked.update(keys)

  def finish(self) -> None:
    """Raises ConfigError for a key that was never asked for."""
    if unknown := sorted(set(self.hf) - self.asked):
      near = nearest(unknown[0], self.asked - HARMLESS) if isinstance(unknown[0], str) else ''
      raise ConfigError(f'config.json has {printable(unknown[0], 60)} {printable(repr(self.hf[unknown[0]]), 60)}, which is '
                        f"unknown for model_type '{self.hf.get('model_type')}': whether it changes what the model computes "
                        f'cannot be told; expected a config.json without it{near}')

  def rope(self, base: float = 10000.0, share: float = 1.0, channels: int = 2) -> dict[str, Any]:
    """rope_base, rope_share and rope_scaling of ours.

    Args:
      base, share: of the family where config.json says nothing. channels: of a head.
    """
    given = self._rope_of()
    if unknown := sorted(given.keys() - ROPE_KEYS):
      raise ConfigError(f'config.json has {printable(unknown[0], 60)} in rope_parameters, which is unknown; expected some '
                        f"of {', '.join(sorted(ROPE_KEYS))}")
    share = self.number('rotary_pct', self.number('partial_rotary_factor', share))
    share = float(given.get('partial_rotary_factor', share))
    base = self.number('rotary_emb_base', self.number('rope_theta', base))
    base = float(given.get('rope_theta', base))
    if int(channels * share) % 2 or not 1 <= int(channels * share) <= channels:
      raise ConfigError(f'config.json rotates {share:g} of {channels} channels; expected an even number of them')
    return {'rope_base': base, 'rope_share': share, 'rope_scaling': self._scaling(given)}

  def _rope_of(self) -> dict[str, Any]:
    """rope_parameters (transformers 5) or rope_scaling (4), flat."""
    kinds = dict.fromkeys(ROPE_KEYS, (float, None)) | {'rope_type': (str, None), 'type': (str, None),
                                                       'truncate': (bool, None), 'finetuned': (bool, None)}
    found: dict[str, Any] = {}
    for key in ('rope_parameters', 'rope_scaling'):
      value = self.get(key, dict, {})
      if wrong := reading.misfit(value, kinds, key):
        raise ConfigError(f'config.json: {wrong}')
      found |= {name: x for name, x in value.items() if x is not None}
    return found

  def _scaling(self, given: dict[str, Any]) -> str:
    """model.rope_scaling of what rope_parameters say. Raises ConfigError for a kind that there is not."""
    kind = given.get('rope_type', given.get('type', 'default'))
    if kind == 'default':
      return ''
    if kind not in rope.KINDS:
      raise ConfigError(f"config.json has rope_type {printable(repr(kind), 60)}; expected default, {', '.join(rope.KINDS)}")
    if kind == 'yarn' and given.get('truncate') is False:
      raise ConfigError('config.json has truncate False in rope_parameters; expected True')
    longest = self.hf.get('max_position_embeddings')
    length = given.get('original_max_position_embeddings', longest)
    names = {'low': 'low_freq_factor', 'high': 'high_freq_factor'}
    defaults = {'fast': given.get('beta_fast', 32), 'slow': given.get('beta_slow', 1), 'length': length}
    if kind == 'yarn':
      defaults['scale'] = given.get('attention_factor') or _mscale(given)
    values: dict[str, Any] = {name: defaults.get(name, given.get(names.get(name, name))) for name in rope.KINDS[kind]}
    if missing := next((name for name, value in values.items() if value is None), None):
      raise ConfigError(f"config.json has rope_type '{kind}' without {names.get(missing, missing)}; expected a number")
    text = rope.write(kind, {name: float(value) for name, value in values.items()})
    rope.read(text)
    return text

  def layers_that_read_all(self, layers: int, window: int | None, default: Sequence[bool]) -> dict[str, int]:
    """sliding_window and global_every of ours, from `layer_types` or, without, the family's rule `default`."""
    types = self.get('layer_types', [str], None)
    full = list(default) if types is None else [kind == 'full_attention' for kind in types]
    if types is not None and (len(types) != layers or set(types) - {'full_attention', 'sliding_attention'}):
      raise ConfigError(f"config.json has layer_types {printable(repr(types), 60)}; expected {layers} of 'full_attention' "
                        "and 'sliding_attention'")
    if window is None or all(full):
      return {'sliding_window': 0, 'global_every': 0}
    every = full.index(True) + 1 if True in full else 0
    if full != [bool(every) and (n + 1) % every == 0 for n in range(layers)]:
      raise ConfigError('config.json has layer_types in which full_attention is not every n-th layer; expected that')
    return {'sliding_window': window, 'global_every': every}


def _mscale(given: dict[str, Any]) -> float:
  """YaRN's factor of queries and keys: Peng et al. 2023, arXiv:2309.00071, equation 22."""
  def scale(m):
    return 0.1 * m * math.log(given['factor']) + 1.0 if given.get('factor', 0) > 1 else 1.0
  if given.get('mscale') and given.get('mscale_all_dim'):
    return scale(given['mscale']) / scale(given['mscale_all_dim'])
  return scale(1.0)


def write_rope(base: float, scaling: str, share: float = 1.0) -> dict[str, Any]:
  """What config.json says of rotary positions, for transformers 5 and 4."""
  kind, values = rope.read(scaling)
  names = {'low': 'low_freq_factor', 'high': 'high_freq_factor', 'length': 'original_max_position_embeddings',
           'fast': 'beta_fast', 'slow': 'beta_slow', 'scale': 'attention_factor'}
  scaled: dict[str, Any] = {names.get(name, name): value for name, value in values.items()}
  if 'original_max_position_embeddings' in scaled:
    scaled['original_max_position_embeddings'] = int(scaled['original_max_position_embeddings'])
  partial = {} if share == 1.0 else {'partial_rotary_factor': share}
  return {'rope_parameters': {'rope_type': kind or 'default', 'rope_theta': base} | scaled | partial,
          'rope_theta': base,  # transformers 4 reads this one, and without it takes 10000 and says nothing
          **({'rope_scaling': {'rope_type': kind, 'rope_theta': base} | scaled | partial} if kind else {}), **partial}
