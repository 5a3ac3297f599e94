"""50 pairs of a program and a length: our compiler beside recorded figures of Tracr (Lindner et al. 2023).

  python -m benchmarks.rasp

Each of ours runs on every input of up to 5 tokens, on random and adversarial longer ones, against the interpreter. The
other's figures, in tracr.json, are of its unmodified snapshot 9ce2b8c, measured once on the same programs, lengths and
vocabularies. Milliseconds of CPU are those of the first compilation of a program after importing.
"""

import json
import pathlib
import time

from absl import app, flags, logging

import rasp
from rasp import verify
from rasp.library import dyck, sequences

SAMPLES = flags.DEFINE_integer('samples', 20, 'random inputs a length above 5', lower_bound=0)

LETTERS, DIGITS = 'abcd', '1234'
PROGRAMS = {  # name in the baseline: (s-op, vocabulary)
    'length': lambda n: (rasp.length, LETTERS),
    'length_num': lambda n: (rasp.length, LETTERS),
    'reverse': lambda n: (sequences.reverse(), LETTERS),
    'hist': lambda n: (sequences.histogram(), LETTERS),
    'count_a': lambda n: (sequences.count('a'), LETTERS),
    'count_less_freq2': lambda n: (sequences.count_less_frequent(2), LETTERS),
    'sort_unique': lambda n: (sequences.sort_unique(), 'abcdefghijklmnopqrstuvwxyz'[:n + 2]),
    'sort': lambda n: (sequences.sort(), DIGITS),
    'sort_freq': lambda n: (sequences.sort_by_frequency(), DIGITS),
    'frac_prevs': lambda n: (sequences.fraction_of_previous('a'), LETTERS),
    'frac_prevs_causal': lambda n: (sequences.fraction_of_previous('a'), LETTERS),
    'shift1': lambda n: (sequences.shift(1), LETTERS),
    'detect_abc': lambda n: (sequences.detect('abc'), 'abc'),
    'pair_balance': lambda n: (sequences.pair_balance('(', ')'), '()[]'),
    'shuffle_dyck1': lambda n: (dyck.shuffle_dyck(dyck.PAIRS[:1]), '()'),
    'shuffle_dyck2': lambda n: (dyck.shuffle_dyck(dyck.PAIRS[:2]), '()[]'),
    'shuffle_dyck3': lambda n: (dyck.shuffle_dyck(dyck.PAIRS), '()[]{}'),
    'nary_x+y-i': lambda n: (sequences.three_ary(), (0, 1, 2)),
    'tok_plus_pos': lambda n: (sequences.add_position(), (0, 1, 2, 3)),
    'parity': lambda n: (sequences.parity(), '01'),
}


def build(row):
  """(s-op, vocabulary, compile's settings) of a row of the baseline."""
  name, half = row['program'].split(' [')[0], 'bf16' in row['program']
  sop, vocabulary = PROGRAMS[name](row['N'])
  return sop, vocabulary, {'causal': row['mode'] == 'causal', 'dtype': 'bfloat16' if half else 'float32'}


def main(_) -> None:
  logging.set_verbosity(logging.WARNING)  # JAX tells absl's log of every kind of device that is not there
  print(f'{"":24}{"ours":>26}{"":38}{"Tracr":>26}')
  print(f'{"program":20}{"N":>4}{"layers":>7}{"width":>6}{"mlp":>5}{"params":>8}{"ms":>6}{"wrong":>7}{"inputs":>7}'
        f'{"error":>9}{"bound":>9}  {"layers":>7}{"width":>6}{"mlp":>6}{"params":>9}{"wrong":>7}{"error":>9}')
  slowest = worst = 0.0
  wrong = refused = larger = 0
  rows = json.loads(pathlib.Path(__file__).with_name('tracr.json').read_text())
  for row in rows:
    sop, vocabulary, settings = build(row)
    theirs = (f'  {row["layers"]:7}{row["d_model"]:6}{row["mlp"]:6}{row["params"]:9,}{row["wrong"]:7}'
              f'{row["max_err"]:9.1e}')
    begin = time.process_time()
    try:
      compiled = rasp.compile(sop, vocabulary, row['N'], **settings)
    except rasp.RaspError as error:
      refused += 1
      print(f'{row["program"]:20}{row["N"]:4} refused: {str(error).split(": ", 2)[-1][:64]:74}{theirs}')
      continue
    seconds = time.process_time() - begin
    verdict = verify.verify(compiled, sop, exhaustive=min(5, row['N']), samples=SAMPLES.value)
    r = compiled.report
    slowest, worst, wrong = max(slowest, seconds), max(worst, verdict.worst), wrong + verdict.wrong
    larger += r.layers > row['layers'] or r.width > row['d_model'] or r.parameters > row['params']
    print(f'{row["program"]:20}{row["N"]:4}{r.layers:7}{r.width:6}{r.feedforward:5}{r.parameters:8,}'
          f'{1000 * seconds:6.0f}{verdict.wrong:7}{verdict.inputs:7}{verdict.worst:9.1e}{r.bound:9.1e}{theirs}',
          flush=True)
    assert verdict.worst <= r.bound, (row['program'], verdict)
  print(f'{len(rows)} pairs: {wrong} wrong inputs, {refused} refused in bfloat16, largest error {worst:.1e}, '
        f'slowest compilation {1000 * slowest:.0f} ms, {larger} larger than Tracr in layers, width or parameters; '
        f'Tracr is wrong in {sum(row["wrong"] > 0 for row in rows)} pairs')


if __name__ == '__main__':
  app.run(main)
