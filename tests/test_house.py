"""The house as the sources say it: imports run down and in no circle, no long function, nobody asks for a model's name."""

import ast
import configparser
import functools
import pathlib
import re

import packaging.requirements
import packaging.version
import pytest

ROOT = pathlib.Path(__file__).parents[1]
MAY_IMPORT = {  # of each package, besides itself
    'foundation': set(), 'pallas_kernels': {'foundation'}, 'framework': {'foundation', 'pallas_kernels'},
    'scaling': {'foundation'}, 'rasp': {'foundation', 'framework'},
    'experiments': {'foundation', 'pallas_kernels', 'framework', 'scaling', 'rasp'}}
LONGEST = 60  # lines of a function


@functools.cache
def sources() -> dict[str, ast.Module]:
  """{module: its syntax tree} of all packages; a package is known by its folder's name."""
  paths = [path for package in MAY_IMPORT for path in sorted((ROOT / package).rglob('*.py'))]
  return {'.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'):
          ast.parse(path.read_text(encoding='utf-8')) for path in paths}


def imported(module: str) -> set[str]:
  """The modules of ours that a module imports, at its top or in a function."""
  found = set()
  for node in ast.walk(sources()[module]):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      found |= {f'{node.module}.{alias.name}' if f'{node.module}.{alias.name}' in sources() else node.module
                for alias in node.names}
  return (found & set(sources())) - {module}


@pytest.mark.parametrize('package', MAY_IMPORT)
def test_imports_run_down(package):
  up = {(module, other) for module in sources() if module.split('.')[0] == package for other in imported(module)
        if other.split('.')[0] not in MAY_IMPORT[package] | {package}}
  assert not up


def circles(graph: dict[str, set[str]]) -> list[str]:
  """Modules from which a way of imports leads back."""
  left = {module: set(others) for module, others in graph.items()}
  while free := [module for module, others in left.items() if not others & set(left)]:
    for module in free:
      del left[module]
  return sorted(left)


def test_imports_go_in_no_circle():
  assert not circles({module: imported(module) for module in sources()})
  assert circles({'a': {'b'}, 'b': {'c'}, 'c': {'b'}, 'd': set()}) == ['a', 'b', 'c']


def test_no_function_is_long():
  long = [(module, node.name) for module, tree in sources().items() if not module.startswith('pallas_kernels')
          for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= LONGEST]
  assert not long


def test_nobody_asks_for_the_name_of_a_model():
  def is_name(node: ast.AST) -> bool:
    return (isinstance(node, ast.Attribute) and node.attr == 'name' and isinstance(node.value, ast.Attribute)
            and node.value.attr == 'model')
  asked = [(module, node.lineno) for module, tree in sources().items() for node in ast.walk(tree)
           if isinstance(node, ast.Compare) and any(is_name(part) for part in (node.left, *node.comparators))]
  assert not asked


def test_init_files_define_nothing_but_the_registries():
  defining = {module for module, tree in sources().items() if (ROOT / module.replace('.', '/') / '__init__.py').exists()
              and any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) for node in tree.body)}
  assert defining <= {'framework.models', 'framework.data.tasks', 'framework.training.losses',
                      'framework.training.optimizers', 'framework.training.schedules'}


def named(line):
  return re.match(r'[\w.-]+', line)[0].lower().replace('_', '-')


@pytest.mark.parametrize('file, extras', [('run', []), ('test', ['test'])])
def test_what_is_installed_is_pinned_with_its_hash_and_as_new_as_setup_asks(file, extras):
  """`make constraints` writes the files anew."""
  setup = configparser.ConfigParser()
  setup.read(ROOT / 'setup.cfg')
  wanted = setup['options']['install_requires'].split('\n')
  for extra in extras:
    wanted += setup['options.extras_require'][extra].split('\n')
  blocks = re.split(r'\n(?=\S)', (ROOT / 'constraints' / f'{file}.txt').read_text())
  pins = {}
  for block in blocks:
    assert '--hash=sha256:' in block, block.splitlines()[0]
    pins.setdefault(named(block), []).append(packaging.version.Version(re.match(r'[\w.-]+==([\w.]+)', block)[1]))
  for line in wanted:
    if line and not line.startswith('#'):
      asked = packaging.requirements.Requirement(line)
      assert all(version in asked.specifier for version in pins[named(line)]), line
