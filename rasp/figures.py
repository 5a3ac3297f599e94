"""The pictures of rasp/README.md: python -m rasp.figures FOLDER (new, or without pictures of these names)."""

import pathlib
import sys

import numpy as np
import optax

import rasp
from rasp import draw, finetune
from rasp.library import PROGRAMS, arithmetic

STEPS = 20


def adder_courses() -> dict[str, finetune.Course]:
  """20 steps on sums of up to three digits, from the compiled adder and from random starts of its shape."""
  compiled = rasp.compile(arithmetic.adder(), arithmetic.SYMBOLS, 8)
  rng = np.random.default_rng(0)
  sums = lambda n: [f'{a}+{b}=' for a, b in rng.integers(0, 1000, (n, 2))]
  def exact(row):
    a, b = ''.join(row).rstrip('=').split('+')
    return list(f'{int(a) + int(b):0{len(row)}d}')
  batches, held_out = [sums(64) for _ in range(STEPS)], sums(256)
  run = lambda params, optimizer: finetune.train(compiled, params, batches, held_out, optimizer, exact)
  courses = {'compiled': run(finetune.confident(compiled), finetune.gentle())}
  courses['random, the same parts'] = run(finetune.random(compiled, 0), finetune.gentle())
  for rate in (1e-3, 1e-2, 3e-2):
    courses[f'random, all parts, Adam {rate:g}'] = run(finetune.random(compiled, 0), optax.adam(rate))
  return courses


def courses_figure(courses: dict[str, finetune.Course]):
  from matplotlib.figure import Figure  # no pyplot: no display and no global state
  drawing = Figure(figsize=(6.4, 4.0), layout='constrained')
  axes = drawing.add_subplot(xlabel='step', ylabel='share of right digits, held out', ylim=(0, 1.03),
                             title='20 steps from the compiled adder, and from a random start of its shape')
  for name, course in courses.items():
    axes.plot(course.accuracy, label=name, linewidth=2 if name == 'compiled' else 1)
  axes.set_xticks(range(0, STEPS + 1, 5))
  axes.grid(alpha=0.3)
  axes.legend(loc='center right')
  return drawing


def main(argv: list[str]) -> None:
  if len(argv) != 2:
    sys.exit('expected one folder, for example python -m rasp.figures drawings')
  folder = pathlib.Path(argv[1])
  folder.mkdir(parents=True, exist_ok=True)
  for name in ('associative_memory', 'adder'):
    program = PROGRAMS[name]
    compiled = rasp.compile(program, longest=len(program.example))
    draw.save(draw.figure(program.result, list(program.example), compiled), folder / f'{name}.svg')
  draw.save(courses_figure(adder_courses()), folder / 'finetune.svg')


if __name__ == '__main__':
  main(sys.argv)
