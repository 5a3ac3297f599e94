# Every target makes its own environment in .venv from python3 when that is missing or stale. What goes into it, to the
# byte, is in constraints/; setup.cfg has the lower bounds that a fork needs.
PYTHON ?= python3
RUN := .venv/bin/python
INSTALL := -m pip install --quiet --disable-pip-version-check
RUNS ?= runs

.PHONY: quickstart test test-slow test-peers test313 test-kernels312 test-compile types bench bench-rasp \
  draw-rasp venv constraints clean remake

quickstart: venv  ## the main job: five formulas in minutes, resumable, and a page about them
	$(RUN) -m experiments.quickstart --workdir=$(RUNS)/quickstart

test: .venv/test  ## two processes, a file of tests at a time
	$(RUN) -m pytest -n 2 --dist loadfile -m 'not slow and not peers'

test-slow: .venv/test
	$(RUN) -m pytest -m 'slow and not peers'

test-kill: .venv/test  ## runs that are killed, stopped or out of disk, and what is left of them
	$(RUN) -m pytest -m 'slow and kill and not peers'

test-peers: .venv/peers
	$(RUN) -m pytest -m peers

# Another Python than python3, with the newest libraries that it gets.
PYTHON313 ?= $(firstword $(wildcard $(HOME)/.pyenv/versions/3.13*/bin/python3.13) $(shell command -v python3.13))

test313:  ## the tests on Python 3.13; skipped without it
ifeq ($(shell $(PYTHON313) -c 'print(1)' 2>/dev/null),1)
	test -x .venv313/bin/python || $(PYTHON313) -m venv .venv313
	.venv313/bin/python $(INSTALL) --editable '.[test]'
	.venv313/bin/python -m pytest -n 2 --dist loadfile -m 'not slow and not peers'
else
	@echo 'skipped: there is no python3.13 (name one with PYTHON313=...)'
endif

# The Mosaic GPU interpreter needs jax 0.11, which needs Python 3.12.
PYTHON312 ?= $(shell command -v python3.12)

test-kernels312:  ## Hopper kernels, interpreted; skipped without python3.12
ifeq ($(shell $(PYTHON312) -c 'print(1)' 2>/dev/null),1)
	test -x .venv312/bin/python || $(PYTHON312) -m venv .venv312
	.venv312/bin/python $(INSTALL) --editable '.[test]'
	.venv312/bin/python -m pytest tests/kernels/test_mosaic_gpu.py tests/kernels/test_decoder_backends.py -m ''
else
	@echo 'skipped: there is no python3.12 (name one with PYTHON312=...)'
endif

test-compile:  ## machine code for absent GPUs and TPUs, Triton interpreted; 3 GB of plugins
	test -x .venv-compile/bin/python || $(PYTHON) -m venv .venv-compile
	.venv-compile/bin/python $(INSTALL) --editable '.[test,compile]'
	.venv-compile/bin/python -m pytest -n 2 --dist worksteal -m '' tests/kernels/test_compile.py \
	  tests/kernels/test_compile_tiered.py tests/kernels/test_compile_plan.py \
	  tests/kernels/test_support.py tests/kernels/test_triton.py tests/kernels/test_decoder_backends.py \
	  tests/kernels/test_sequence.py

types: .venv/types  ## mypy, as setup.cfg sets it
	$(RUN) -m mypy

bench: .venv/peers
	$(RUN) -m benchmarks.shakespeare
	$(RUN) -m benchmarks.generation
	$(RUN) -m benchmarks.scaling

bench-rasp: venv  ## compiled programs beside Tracr's recorded figures
	$(RUN) -m benchmarks.rasp

draw-rasp: venv  ## the pictures of rasp/README.md, made again
	rm -f rasp/drawings/*.svg
	$(RUN) -m rasp.figures rasp/drawings

venv: .venv/ready

# Another python3 than the one the environment was made from makes it stale, and so does a change of setup.cfg.
version := import sys; print(sys.version, sys.base_prefix)
ifneq ($(shell .venv/bin/python -c '$(version)' 2>/dev/null),$(shell $(PYTHON) -c '$(version)'))
.venv/ready: remake
endif

.venv/ready: setup.cfg pyproject.toml constraints/run.txt
	$(PYTHON) -m venv --clear .venv
	$(RUN) $(INSTALL) --require-hashes --requirement constraints/run.txt
	$(RUN) $(INSTALL) --no-deps --no-build-isolation --editable .
	touch $@

.venv/test: .venv/ready constraints/test.txt
	$(RUN) $(INSTALL) --require-hashes --requirement constraints/test.txt
	touch $@

.venv/peers: .venv/test
	$(RUN) $(INSTALL) --editable '.[test,peers]'
	touch $@

.venv/types: .venv/test
	$(RUN) $(INSTALL) --editable '.[test,types]'
	touch $@

constraints: setup.cfg  ## the newest libraries that setup.cfg admits, with their hashes, for every system and Python
	test -x .venv-lock/bin/uv || ($(PYTHON) -m venv .venv-lock && .venv-lock/bin/python $(INSTALL) uv)
	for file in run test; do .venv-lock/bin/uv pip compile setup.cfg constraints/tools.in --quiet --universal --upgrade \
	  --python-version 3.11 --generate-hashes --no-header --no-annotate $$(test $$file = run || echo --extra test) \
	  --output-file constraints/$$file.txt; done

clean:
	rm -rf .venv .venv312 .venv313 .venv-compile .venv-lock .cache build *.egg-info
