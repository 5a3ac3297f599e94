"""A run as a model of lm-evaluation-harness: importing this registers it there as `lemma`.

What its own HF backend computes on the exported folder, this computes on the run: the three kinds of requests, with left
truncation to the window, and in loglikelihood_rolling windows that share one token. Two things differ: special tokens in
a text are text here, and the token that opens a document stands once before a text of loglikelihood_rolling, where that
backend has it twice if the tokenizer puts one there by itself.

Contexts begin with the token that opens a document where the tokenizer's own file puts one there, as Llama's does; with
open=true always, as documents do in training here, with open=false never. Documents are scored without their end: bits
per byte of experiments.evaluate pay for that token, the harness's word and byte perplexities do not.
"""

from collections.abc import Sequence
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
import numpy as np

from foundation.errors import ConfigError
from framework import cross_entropy, generation
from framework.data import foreign
from framework.models import contract
from framework.training import setup

SHORTEST = 32  # tokens that a row is padded to, and powers of 2 of them: few programs are compiled
LENGTHS = ('max_gen_toks', 'max_new_tokens', 'max_tokens', 'max_completion_tokens')
Row = tuple[list[int], int]  # tokens, of which the last few are scored


@register_model('lemma')
class LemmaLM(TemplateLM):
  """A trained or adopted run.

  Args:
    workdir: its folder. step: of the checkpoint; none: the newest. batch_size: rows at a time. max_length: tokens read at
      a time; 0: the run's window. open: see the module's docstring; '' as the tokenizer's file says.

  Raises:
    ConfigError: there is no such run, or it does not write from left to right.
  """

  def __init__(self, workdir: str, step: int | None = None, batch_size: int | str = 8, max_length: int = 0, open: Any = '',
               **_):  # pylint: disable=redefined-builtin
    super().__init__()
    self.workdir = pathlib.Path(workdir).expanduser().resolve()
    self.trained = setup.load(self.workdir, None if step is None else int(step))
    self.module: Any = self.trained.setup.module
    contract.require(self.module, 'empty_cache', 'lm-evaluation-harness')
    c = self.trained.setup.config
    self.max_length = int(max_length) or c.data.window
    if c.model.position == 'learned' and self.max_length > c.data.window:
      raise ConfigError(f'max_length is {self.max_length}; the run has {c.data.window} positions: expected at most so '
                        'many')
    self.batch = 8 if str(batch_size).startswith('auto') else int(batch_size)
    own = self.trained.tokenizer
    says = isinstance(own, foreign.Foreign) and foreign.opening(own.kind, own.model, {'': own.begin}) == own.begin
    self.open = says if open == '' else str(open).lower() in ('true', '1')
    self._score = jax.jit(self._scored)

  def _scored(self, params: Any, tokens_BxL: jax.Array, segments_BxL: jax.Array) -> tuple[jax.Array, jax.Array]:
    """-ln p of each row's tokens but the first, [B, L - 1], and whether each was the likeliest."""
    inputs, targets = tokens_BxL[:, :-1], tokens_BxL[:, 1:]
    positions = jnp.broadcast_to(jnp.arange(inputs.shape[1]), inputs.shape)
    x, _ = self.module.apply({'params': params}, inputs, positions, segments_BxL[:, :-1])
    def likeliest(row):  # a row at a time: the logits of all would be large
      x_LxD, target_L = row
      return jnp.argmax(self.module.logits(params, x_LxD[None])[0], axis=-1) == target_L
    return cross_entropy.token_nats(x, self.module.head(params), targets), jax.lax.map(likeliest, (x, targets))

  @property
  def eot_token_id(self) -> int:
    return self.trained.tokenizer.end

  @property
  def prefix_token_id(self) -> int:
    return self.trained.tokenizer.begin

  @property
  def tokenizer_name(self) -> str:
    return self.trained.tokenizer.digest

  def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
    ids = self.trained.tokenizer.encode(string).tolist()
    return [self.prefix_token_id, *ids] if self.open and add_special_tokens is not False else ids

  def rows(self, rows: Sequence[Row]) -> list[tuple[float, bool]]:
    """(ln p of the scored tokens, whether greedy decoding writes them) of each row."""
    out: list[Any] = [None] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    for first in range(0, len(order), self.batch):
      part = order[first:first + self.batch]
      longest = len(rows[part[-1]][0]) - 1
      length = 1 + min(SHORTEST << max(0, (longest - 1) // SHORTEST).bit_length(), max(longest, self.max_length))
      tokens, segments = np.zeros((self.batch, length), np.int32), np.zeros((self.batch, length), np.int32)
      for b, i in enumerate(part):
        tokens[b, :len(rows[i][0])], segments[b, :len(rows[i][0])] = rows[i][0], 1
      nats, greedy = map(np.asarray, self._score(self.trained.params, tokens, segments))
      for b, i in enumerate(part):
        span = slice(len(rows[i][0]) - 1 - rows[i][1], len(rows[i][0]) - 1)
        out[i] = -float(nats[b, span].sum(dtype=np.float64)), bool(greedy[b, span].all())
    return out

  def _loglikelihood_tokens(self, requests, **_) -> list[tuple[float, bool]]:
    return self.rows([((context + continuation)[-self.max_length - 1:], min(len(continuation), self.max_length))
                      for _, context, continuation in requests])

  def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
    rows, owners = [], []
    for number, (text,) in enumerate(request.args for request in requests):
      for context, continuation in map(utils.make_disjoint_window, utils.get_rolling_token_windows(
          self.tok_encode(text, False), prefix_token=self.prefix_token_id, max_seq_len=self.max_length, context_len=1)):
        rows.append(([*context, *continuation], len(continuation)))
        owners.append(number)
    totals = [0.0] * len(requests)
    for owner, (value, _) in zip(owners, self.rows(rows)):
      totals[owner] += value
    return totals

  def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
    out: list[Any] = [None] * len(requests)
    groups: dict[str, list[int]] = {}
    for i, request in enumerate(requests):
      groups.setdefault(repr(sorted(request.args[1].items())), []).append(i)
    for group in groups.values():
      for first in range(0, len(group), self.batch):
        part = group[first:first + self.batch]
        texts = self._written([requests[i].args[0] for i in part], requests[part[0]].args[1])
        for i, text in zip(part, texts):
          out[i] = text
    return out

  def _written(self, contexts: list[str], wanted: dict[str, Any]) -> list[str]:
    """What the run writes after each context, up to the first of the stops."""
    until = wanted.get('until') or []
    until = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
    tokens = int(next((wanted[key] for key in LENGTHS if wanted.get(key) is not None), 256))
    if tokens >= self.max_length:
      raise ConfigError(f'max_gen_toks is {tokens}; expected fewer than the {self.max_length} tokens of the window')
    sample = bool(wanted.get('do_sample', (wanted.get('temperature') or 0) > 0))
    settings = generation.Sampling(float(wanted.get('temperature') or 1.0) if sample else 0.0,
                                   int(wanted.get('top_k') or 0), float(wanted.get('top_p') or 1.0), stop=self.eot_token_id)
    prompts = [np.array(self.tok_encode(text)[-(self.max_length - tokens):] or [self.prefix_token_id], np.int32)
               for text in contexts]
    streams, texts = [self.trained.tokenizer.stream() for _ in prompts], [''] * len(prompts)
    ended = [False] * len(prompts)
    for new in generation.generate(self.module, self.trained.params, prompts, tokens=tokens, window=self.max_length + 1,
                                   settings=settings, seed=int(wanted.get('seed') or 0)):
      for b, row in enumerate(new):
        if not ended[b]:
          stops = np.flatnonzero(row == self.eot_token_id)
          texts[b] += streams[b].push(row[:stops[0]] if stops.size else row)
          ended[b] = bool(stops.size) or any(stop in texts[b] for stop in until)
      if all(ended):
        break
    return [_before(text + stream.finish(), until) for text, stream in zip(texts, streams)]


def _before(text: str, until: list[str]) -> str:
  for stop in until:
    text = text.split(stop)[0]
  return text
