"""Trains nanoGPT's CPU setting side by side with the same model in PyTorch, and prints the ratio of step times; then
trains experiments/configs/shakespeare_cpu.py, which is to reach a better loss in the time that PyTorch took.

  python -m benchmarks.shakespeare --text=tinyshakespeare.txt

The two start from the same parameters and read the same batches. Each runs in a process of its own; they take turns in
blocks of steps, so that a change in the machine's speed meets both. Needs the extra `peers`.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

from absl import app, flags
import numpy as np

from experiments.configs import shakespeare_cpu, shakespeare_nanogpt

TEXT = flags.DEFINE_string('text', '../shared/data/text/tinyshakespeare.txt', 'Tiny Shakespeare, 1,115,394 bytes')
BLOCK = flags.DEFINE_integer('block', 50, 'steps a turn', lower_bound=2)
STEPS = flags.DEFINE_integer('steps', 2000, "steps of nanoGPT's setting", lower_bound=2)
WORKER = flags.DEFINE_enum('worker', None, ['lemma', 'pytorch', 'lemma_cpu'], 'internal: run as this side')


def configure(side: str):
  """The config of `lemma` and `pytorch`, which is nanoGPT's setting, or of `lemma_cpu`."""
  from framework import config as config_lib
  config = (shakespeare_cpu if side == 'lemma_cpu' else shakespeare_nanogpt).get_config()
  config.data.path = TEXT.value
  if side != 'lemma_cpu':
    config.training.steps = STEPS.value
  return config_lib.resolve(config)


def batches(corpus, config):
  from framework.data import windows
  return windows.Windows.of(corpus.train, corpus.tokenizer.end, config.data).batches(config.training.batch, seed=0)


def validation(corpus, config):
  from framework.data import windows
  d = config.data
  return windows.Windows(corpus.validation, corpus.tokenizer.end, d.window, d.window, d.packed).each(60)


def lemma(config):
  """Returns functions: a step, the validation loss, and one that waits for the last step."""
  from experiments.shared import launch
  launch.start_jax(config)
  import jax
  from framework.data import corpus as corpus_lib
  from framework.data import windows
  from framework.training import evaluation, layout, setup
  corpus = corpus_lib.prepare(config.data)
  s = setup.set_up(config, corpus.tokenizer.size)
  train_step, data, state, pending = s.compile_step(), batches(corpus, config), s.init(), None

  def one():
    nonlocal state, pending
    state, metrics = train_step(state, layout.split_rows(next(data), s.mesh))
    if pending is not None:
      pending = jax.device_get(pending)['loss']
    pending = metrics

  def loss():
    nats = evaluation.compile_nats(s.module, s.mesh)
    text = windows.Windows(corpus.validation, corpus.tokenizer.end, config.data.window, config.evaluation.stride,
                           config.data.packed)
    return evaluation.evaluate(nats, state.params, text, corpus.tokenizer, s.mesh, batch=60)['nats_per_token']

  return one, loss, lambda: jax.block_until_ready(state)


def pytorch():
  """nanoGPT's model and step, written in PyTorch, eager."""
  import jax
  jax.config.update('jax_platforms', 'cpu')
  import torch
  from torch import nn
  from torch.nn import functional
  from framework.data import corpus as corpus_lib
  from framework.training import setup
  config = configure('pytorch')
  m, o = config.model, config.optimizer
  corpus = corpus_lib.prepare(config.data)
  s = setup.set_up(config, corpus.tokenizer.size)
  initial, D, H = jax.device_get(s.init().params), m.width, m.heads

  class Norm(nn.Module):
    def __init__(self):
      super().__init__()
      self.weight = nn.Parameter(torch.ones(D))
    def forward(self, x):
      return functional.layer_norm(x, (D,), self.weight, None, m.norm_epsilon)

  class Block(nn.Module):
    def __init__(self, w):
      super().__init__()
      def linear(*names):  # weights of ours are [in, out]; several share one product, as in nanoGPT
        weight = np.concatenate([w[n]['weight'].reshape(D if n != 'down' else 4 * D, -1) for n in names], axis=1)
        layer = nn.Linear(*weight.shape, bias=False)
        layer.weight.data = torch.tensor(weight.T.copy())
        return layer
      self.norm_1, self.norm_2 = Norm(), Norm()
      self.qkv, self.out = linear('query', 'key', 'value'), linear('out')
      self.up, self.down = linear('up'), linear('down')
    def forward(self, x):
      B, L, _ = x.shape
      q, k, v = (z.view(B, L, H, D // H).transpose(1, 2) for z in self.qkv(self.norm_1(x)).split(D, dim=2))
      a = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
      x = x + self.out(a.transpose(1, 2).contiguous().view(B, L, D))
      return x + self.down(functional.gelu(self.up(self.norm_2(x)), approximate='tanh'))

  class Decoder(nn.Module):
    def __init__(self):
      super().__init__()
      self.embedding = nn.Parameter(torch.tensor(initial['embedding']))
      self.position = nn.Parameter(torch.tensor(initial['position']))
      self.blocks = nn.ModuleList([Block(jax.tree.map(lambda x: x[n], initial['blocks'])) for n in range(m.layers)])
      self.norm = Norm()
    def forward(self, tokens, positions, targets):
      x = functional.embedding(tokens, self.embedding) + functional.embedding(positions, self.position)
      for block in self.blocks:
        x = block(x)
      logits = self.norm(x) @ self.embedding.T
      return functional.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1), reduction='none')

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  model = Decoder()
  groups = [{'params': [p for p in model.parameters() if p.dim() >= 2], 'weight_decay': o.weight_decay},
            {'params': [p for p in model.parameters() if p.dim() < 2], 'weight_decay': 0.0}]
  optimizer = torch.optim.AdamW(groups, lr=o.learning_rate, betas=(o.beta1, o.beta2), eps=o.epsilon)
  data, number = batches(corpus, config), 0
  pick = lambda batch, name: torch.from_numpy(batch[name].astype(np.int64))

  def one():
    nonlocal number
    for group in optimizer.param_groups:
      group['lr'] = float(s.learning_rate(number))
    number += 1
    batch = next(data)
    loss = (model(pick(batch, 'tokens'), pick(batch, 'positions'), pick(batch, 'targets'))
            * torch.from_numpy(batch['weights']).view(-1)).sum() / batch['weights'].sum()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), o.clip_norm)
    optimizer.step()

  @torch.no_grad()
  def loss():
    total = targets = 0.0
    for batch in validation(corpus, config):
      nats = model(pick(batch, 'tokens'), pick(batch, 'positions'), pick(batch, 'targets')).double().numpy()
      total, targets = total + float((nats * batch['weights'].ravel()).sum()), targets + float(batch['weights'].sum())
    return total / targets

  return one, loss, lambda: None


def work(side: str) -> None:
  """Answers 'N' with the seconds of N steps, and 'loss' with the validation loss."""
  begin = time.perf_counter()
  one, loss, wait = pytorch() if side == 'pytorch' else lemma(configure(side))
  ready = time.perf_counter()
  one()
  wait()
  print(json.dumps({'first_step': time.perf_counter() - ready, 'start': ready - begin}), flush=True)
  for line in sys.stdin:
    if line.strip() == 'loss':
      print(json.dumps(loss()), flush=True)
      continue
    times = []
    for _ in range(int(line)):
      begin = time.perf_counter()
      one()
      times.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    wait()
    times[-1] += time.perf_counter() - begin
    print(json.dumps(times), flush=True)


def main(_) -> None:
  if WORKER.value:
    work(WORKER.value)
    return
  if not pathlib.Path(TEXT.value).is_file():
    sys.exit(f'error: {TEXT.value} does not exist; give --text=PATH of Tiny Shakespeare (input.txt of char-rnn)')
  sides = {}
  for side in ('lemma', 'pytorch', 'lemma_cpu'):
    sides[side] = subprocess.Popen([sys.executable, '-m', 'benchmarks.shakespeare', f'--worker={side}',
                                    f'--text={TEXT.value}', f'--steps={STEPS.value}'],
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
  def ask(side, word):
    sides[side].stdin.write(f'{word}\n')
    sides[side].stdin.flush()
    return json.loads(sides[side].stdout.readline())
  first = {side: json.loads(process.stdout.readline()) for side, process in sides.items()}
  configs = {side: configure(side) for side in sides}
  steps = {side: config.training.steps for side, config in configs.items()}
  tokens = {side: config.training.batch * config.data.stride for side, config in configs.items()}
  times = {side: [] for side in sides}
  turns = -(-(STEPS.value - 1) // BLOCK.value)
  for turn in range(turns):
    for side in sides:  # the config's steps are spread over as many turns
      done, until = ((steps[side] - 1) * t // turns for t in (turn, turn + 1))
      times[side].append(ask(side, until - done))
    if sys.stderr.isatty():
      print(f'\rturn {turn + 1} of {turns} ', end='', file=sys.stderr)
  losses = {side: ask(side, 'loss') for side in sides}
  blocks = {side: [statistics.fmean(turn) for turn in times[side] if turn] for side in sides}
  ratio = statistics.median(b / a for a, b in zip(blocks['lemma'], blocks['pytorch']))
  print(f"{'':10} {'steps':>6} {'ms/step':>9} {'least':>7} {'tokens/s':>10} {'first step s':>13} {'seconds':>8} "
        f"{'held-out nats':>14}")
  for side in sides:
    median, seconds = statistics.median(blocks[side]), sum(map(sum, times[side]))
    print(f'{side:10} {steps[side]:6} {1e3 * median:9.2f} {1e3 * min(blocks[side]):7.2f} '
          f"{tokens[side] / median:10,.0f} {first[side]['first_step']:13.1f} {seconds:8.1f} {losses[side]:14.4f}")
  print(f'lemma is {ratio:.2f} times as fast as PyTorch eager (median over {turns} pairs of blocks); seconds are those '
        'of all steps but the first')
  for process in sides.values():
    process.stdin.close()
    process.wait()


if __name__ == '__main__':
  app.run(main)
