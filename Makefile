# make demo | make reproduce | make test | make check | make benchmark | make faults        PYTHON=python3.13 VENV=.venv313 make test   for another Python
PYTHON ?= python3
VENV ?= .venv
DEMO ?= /tmp/repbias_demo
REPRODUCE ?= /tmp/repbias_all
PRESET ?= quick
BIN = $(VENV)/bin

.PHONY: demo reproduce test check benchmark faults clean

demo: $(VENV)/installed
	$(BIN)/python -m experiments.run --experiment=complexity --preset=$(PRESET) --workdir=$(DEMO)

reproduce: $(VENV)/installed
	$(BIN)/python -m experiments.run --experiment=ALL --preset=$(PRESET) --workdir=$(REPRODUCE)

test: check
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder

check: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

benchmark: $(VENV)/installed-benchmark
	$(BIN)/python -m experiments.benchmark
	$(BIN)/python -m experiments.benchmark --part=transformer
	$(BIN)/python -m experiments.benchmark --part=convnet

faults: $(VENV)/installed-test
	$(BIN)/python -m tests.faults.campaign --output=experiments/results/faults.csv
	$(BIN)/python -m tests.faults.campaign --output=experiments/results/faults_transformer.csv --experiment=tiny_sequence --share=0.1
	$(BIN)/python -m tests.faults.campaign --output=experiments/results/faults_convnet.csv --experiment=tiny_images --share=0.1

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python setup.py requirements.txt
	$(BIN)/python -m pip install --quiet -e . -c requirements.txt
	touch $@

$(VENV)/installed-test: $(VENV)/bin/python setup.py requirements.txt
	$(BIN)/python -m pip install --quiet -e '.[test]' -c requirements.txt
	touch $@ $(VENV)/installed

$(VENV)/installed-benchmark: $(VENV)/bin/python setup.py requirements.txt
	$(BIN)/python -m pip install --quiet -e '.[benchmark]' -c requirements.txt
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) *.egg-info .pytest_cache .ruff_cache
