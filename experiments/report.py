"""One page about runs and studies: a self-contained HTML file that needs no network.

Example:
  python -m experiments.report --runs=runs/first
  python -m experiments.report --runs=runs --output=runs/report.html

--runs takes folders, separated by commas; each, and every folder below it, is searched for what has a place on the
page: training runs (config.json), studies (verdict.json), and sections that another program has written (section.json:
title, paragraphs, tables of columns and rows, figures of file and caption). Every number comes from a file that is
named beside it.
"""

from absl import flags

from experiments.reports import sections
from experiments.shared import launch
from foundation import files

RUNS = flags.DEFINE_list('runs', None, 'folders of runs and studies, or folders of such folders')
OUTPUT = flags.DEFINE_string('output', None, 'the page; default: report.html in the first folder of --runs')
TITLE = flags.DEFINE_string('title', None, 'heading of the page; default: the name of the first folder')


def main() -> int:
  roots = [files.expand('--runs', name).resolve() for name in launch.required(RUNS)]
  output = files.expand('--output', OUTPUT.value).resolve() if OUTPUT.value else roots[0] / 'report.html'
  print(sections.write(roots, output, TITLE.value or roots[0].name))
  return 0


if __name__ == '__main__':
  launch.run(main)
