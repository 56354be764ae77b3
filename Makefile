# Each target sets up what it needs by itself. Python 3.11 is tested; 3.12 and 3.13 are supported.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BUNDLE ?= jcl
DATASET ?=
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: env demo test lint bench distributed slow clean

env: $(VENV)/installed

# torch first: the constraint picks the CPU build wherever one is offered for this Python
$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

demo: env
	$(RUN) -m medcl_monai demo --bundle $(BUNDLE) $(if $(DATASET),--dataset "$(DATASET)")

test: env
	$(RUN) -m pytest

slow: env
	$(RUN) -m pytest -m slow

distributed: env
	$(RUN) -m pytest -m distributed

lint: env
	$(VENV)/bin/ruff check .

bench: env
	bash benchmarks/run.sh

clean:
	rm -rf $(VENV) demo bundles/*/eval
