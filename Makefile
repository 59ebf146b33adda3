# Three commands: cpt, merge, publish; DOMAIN names a file in recipes/. Each runs what it needs first.
DOMAIN ?= finance
PYTHON ?= python3
VENV := .venv
TOOLKIT := $(VENV)/bin/toolkit
STAMP := $(VENV)/.installed

.PHONY: help setup data cpt merge publish checks test bench bench-choices bench-merge clean

help:
	@echo "make cpt DOMAIN=finance      continued pre-training: general model -> specialist"
	@echo "make merge DOMAIN=finance    merge both; evaluation chooses the merge weights"
	@echo "make publish DOMAIN=finance REPO=org/name"
	@echo "make setup | checks | test | bench | bench-choices | bench-merge | clean"

setup: $(STAMP)

# The constraints pin every version that was tested together; pip alone would take newer ones.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v < (3, 14) \
	  else "Python 3.10 to 3.13 is needed (this is %d.%d); set PYTHON=python3.11" % v)'
	@echo "setting up $(VENV) (about two minutes)"
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/pip install --disable-pip-version-check -c constraints.txt -e '.[dev]' \
	  > $(VENV)/setup.log 2>&1 || { tail -n 20 $(VENV)/setup.log; exit 1; }
	@touch $@

data: $(STAMP)
	@$(TOOLKIT) data run $(DOMAIN)

cpt: $(STAMP)
	@$(TOOLKIT) cpt run $(DOMAIN)

merge: $(STAMP)
	@$(TOOLKIT) merge choose $(DOMAIN)

publish: $(STAMP)
	@test -n "$(REPO)" || { echo "name the repository: make publish DOMAIN=$(DOMAIN) REPO=org/name"; exit 2; }
	@$(TOOLKIT) publish run $(DOMAIN) --repo $(REPO)

checks: $(STAMP)
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy

test: $(STAMP)
	@HF_HUB_OFFLINE=1 $(VENV)/bin/pytest

bench: $(STAMP)
	@$(VENV)/bin/python benchmarks/loss.py

# Questions a second against lm-eval's, on the model that `make cpt` fetched.
bench-choices: $(STAMP)
	@$(VENV)/bin/python benchmarks/choices.py runs/$(DOMAIN)/general

# Both engines on the same models; half an hour on 2 cores, as mergekit takes minutes for some.
bench-merge: $(STAMP)
	@$(VENV)/bin/python benchmarks/merge.py --millions 660 --runs 3
	@$(VENV)/bin/python benchmarks/merge.py --scaling 110,660,1100,3000 --runs 3

# Environment and caches; runs/ holds your models and stays.
clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build *.egg-info
