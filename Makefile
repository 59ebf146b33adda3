# Three commands: cpt, merge, publish; DOMAIN names a file in recipes/. Each runs what it needs first.
DOMAIN ?= finance
PYTHON ?= python3
VENV := .venv
TOOLKIT := $(VENV)/bin/toolkit
STAMP := $(VENV)/.installed

.PHONY: help setup data cpt merge chat publish checks test bench bench-merge clean sft bench-data bench-train bench-search bench-choices bench-methods

help:
	@echo "make cpt DOMAIN=finance      continued pre-training: general model -> specialist"
	@echo "make merge DOMAIN=finance    merge both; evaluation chooses the merge weights"
	@echo "make chat DOMAIN=finance     talk with the merged model in the terminal"
	@echo "make sft DOMAIN=finance      fine-tune the merge on conversations (the recipe's sft section)"
	@echo "make publish DOMAIN=finance REPO=org/name"
	@echo "make setup | checks | test | bench | bench-merge | bench-data | bench-train | bench-choices | bench-search | bench-methods | clean"

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
	@$(TOOLKIT) merge choose $(DOMAIN) $(if $(SCORE_TEST_AGAIN),--score-test-again)

chat: $(STAMP)
	@test -f runs/$(DOMAIN)/merge/manifest.json || $(TOOLKIT) merge choose $(DOMAIN)
	@$(TOOLKIT) chat $(DOMAIN)

sft: $(STAMP)
	@$(TOOLKIT) sft run $(DOMAIN)

publish: $(STAMP)
	@test -n "$(REPO)" || { echo "name the repository: make publish DOMAIN=$(DOMAIN) REPO=org/name"; exit 2; }
	@$(TOOLKIT) publish run $(DOMAIN) --repo $(REPO) $(if $(TO),--to $(TO))

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
	@for millions in 110 1100 3000; do $(VENV)/bin/python benchmarks/merge.py \
		--millions $$millions --methods ties --mergekit-runs 0; done

# Preparing PubMed text against datasets.map; then ours alone on ten times as much. Ten minutes.
bench-data: $(STAMP)
	@$(VENV)/bin/python benchmarks/data.py

# SmolLM2 (runs/finance/general) in our loop and in transformers' Trainer; then a far resume.
bench-train: $(STAMP)
	@$(VENV)/bin/python benchmarks/train.py
	@$(VENV)/bin/python benchmarks/resume.py

# The search of a run that exists, against mergekit-yaml and lm-eval; half an hour on 2 cores.
bench-search: $(STAMP)
	@$(VENV)/bin/python benchmarks/search.py --recipe $(DOMAIN)

# What four merge methods keep of a run's gain and recover of its loss, on test; beside runs/.
bench-methods: $(STAMP)
	@$(VENV)/bin/python benchmarks/methods.py --recipe $(DOMAIN)

# Environment and caches; runs/ holds your models and stays.
clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build *.egg-info
