"""Studies, one file each: `experiments.study --name=NAME`, or the path of a file elsewhere. A claim, tested by a rule.

A study is a file that holds

  CLAIM, SOURCE, RULE: str     what is claimed, by whom, and from which numbers the verdict follows, stated beforehand
  SCALES: {scale: settings}    cpu, gpu and paper; quick, a first look, where there is one
  parts(settings) -> [name]    what a seed consists of, in order; a part is run once and kept
  run(part, seed, settings, show, folder) -> numbers   one part of one seed; show(done, total, what) draws progress,
                               folder is for runs of its own; numbers as JSON knows them
  verdict(results) -> {'numbers': ..., 'verdict': str}   of {part: {seed: numbers}}
  figure(results, axes)        draws them; its docstring is the caption

and may hold DEVICES, the simulated devices of its training on a CPU: 1 by default, 0 is one a core.
"""
