PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo

.PHONY: demo test test-long fuzz lint types results-fashion_mnist clean

demo: $(VENV)/.installed  ## train, convert and simulate a small network: under two minutes
	rm -rf $(DEMO)
	$(BIN)/python train.py digits-cnet --workdir $(DEMO)
	$(BIN)/python convert.py $(DEMO)
	$(BIN)/python simulate.py $(DEMO) --timesteps 100
	@echo "the curve is in $(DEMO)/curve.png and $(DEMO)/curve.csv"

test: $(VENV)/.installed-test  ## all tests, but for more of the same that takes long
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-long: $(VENV)/.installed-test  ## those: minutes
	$(BIN)/python -m pytest -n logical --maxprocesses 4 -m long

fuzz: $(VENV)/.installed-test  ## convert and simulate random networks with new seeds: 10 minutes
	$(BIN)/python tests/fuzz.py --minutes 10

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-test
	$(BIN)/mypy

results-fashion_mnist: $(VENV)/.installed  ## train and simulate all that results/fashion_mnist shows: hours
	$(BIN)/python -m results.reproduce fashion_mnist

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python requirements.txt constraints.txt pyproject.toml
	$(call install,.)
	touch $@

$(VENV)/.installed-test: $(VENV)/bin/python requirements.txt constraints.txt pyproject.toml
	$(call install,.[test])
	touch $(VENV)/.installed $@

# pip would compile one file after the other; some of libraries are not meant to be compiled.
define install
$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e "$(1)"
-$(BIN)/python -m compileall -q -j 0 $(VENV)/lib
endef

clean:
	rm -rf $(VENV) $(DEMO)
