# Three commands: cpt, merge, publish; DOMAIN names a file in recipes/, VARIANT and SCALE layers of
# it. Each runs what it needs first.
DOMAIN ?= finance
NAME := $(DOMAIN)$(if $(VARIANT),@$(VARIANT))$(if $(SCALE),@$(SCALE))
PYTHON ?= python3
VENV := .venv
TOOLKIT := $(VENV)/bin/toolkit
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
INSTALL := $(VENV)/bin/pip install --no-compile --disable-pip-version-check -c constraints.txt

.PHONY: help setup plan power repeat compare bench-plan data cpt merge heal chat publish checks test docs bench bench-merge clean sft study bench-data bench-train bench-search bench-choice bench-choices bench-methods bench-processes

help:
	@echo "make plan DOMAIN=finance     is CPT the right tool, what will it take, which settings"
	@echo "make power DOMAIN=finance    what the recipe's sets can see of a loss"
	@echo "make cpt DOMAIN=finance      continued pre-training: general model -> specialist"
	@echo "make merge DOMAIN=finance    merge both; evaluation chooses the merge weights"
	@echo "make heal DOMAIN=finance     draw the merge back to the general model (the recipe's heal section)"
	@echo "make repeat DOMAIN=finance SEEDS=3    the whole run over seeds"
	@echo "make compare DOMAIN=finance SEEDS=3   ways of adapting it, beside the line of plain merges"
	@echo "make chat DOMAIN=finance     talk with the merged model in the terminal"
	@echo "make sft DOMAIN=finance      fine-tune the merge on conversations (the recipe's sft section)"
	@echo "make cpt DOMAIN=code-llama SCALE=laptop    a recipe at another scale; VARIANT=... another form"
	@echo "make study DOMAIN=ibrahim-replay SCALE=laptop    a recipe's published claims, measured"
	@echo "make publish DOMAIN=finance REPO=org/name"
	@echo "make setup | checks | test | docs | bench | bench-merge | bench-data | bench-train | bench-choices | bench-choice | bench-search | bench-methods | bench-plan | bench-processes | clean"

setup: $(DEV_STAMP)

# The constraints pin every version that was tested together; pip alone would take newer ones. What
# is imported is compiled once, instead of all that is installed: half a minute less.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v < (3, 14) \
	  else "Python 3.10 to 3.13 is needed (this is %d.%d); set PYTHON=python3.11" % v)'
	@echo "setting up $(VENV) (one to two minutes)"
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(INSTALL) -e '.[documents,mergekit,tasks]' > $(VENV)/setup.log 2>&1 || { tail -n 20 $(VENV)/setup.log; exit 1; }
	@env -u PYTHONDONTWRITEBYTECODE $(VENV)/bin/python -c "import torch, transformers, datasets, accelerate, optuna, numba, scipy.stats, toolkit.cli.main" > $(VENV)/compile.log 2>&1 || true
	@touch $@

# What checks, tests and the guide need besides.
$(DEV_STAMP): $(STAMP)
	@$(INSTALL) -e '.[dev]' > $(VENV)/setup.log 2>&1 || { tail -n 20 $(VENV)/setup.log; exit 1; }
	@touch $@

# DEVICES=8xH100, PRICES=prices.yaml and WRITE=recipes/x.yaml are optional.
plan: $(STAMP)
	@$(TOOLKIT) plan $(NAME) $(if $(DEVICES),--devices $(DEVICES)) $(if $(PRICES),--prices $(PRICES)) $(if $(WRITE),--write $(WRITE))

# What the recipe's sets can see of a loss, before hours are spent.
power: $(STAMP)
	@$(TOOLKIT) power $(NAME)

data: $(STAMP)
	@$(TOOLKIT) data run $(NAME)

cpt: $(STAMP)
	@$(TOOLKIT) cpt run $(NAME)

merge: $(STAMP)
	@$(TOOLKIT) merge choose $(NAME) $(if $(SCORE_TEST_AGAIN),--score-test-again)

# The whole run over seeds: what differs between them, beside what differs by items. With
# DOCUMENTS=same every seed has the first one's documents.
repeat: $(STAMP)
	@$(TOOLKIT) repeat $(NAME) --seeds $(or $(SEEDS),3) $(if $(filter same,$(DOCUMENTS)),--same-documents)

# Ways of adapting it (recipes/ways/), over seeds. WAYS=file and REUSE=folder of runs are optional.
compare: $(STAMP)
	@$(TOOLKIT) compare $(NAME) --seeds $(or $(SEEDS),3) $(if $(WAYS),--ways $(WAYS)) $(if $(REUSE),--reuse $(REUSE))

chat: $(STAMP)
	@test -f runs/$(NAME)/merge/manifest.json || $(TOOLKIT) merge choose $(NAME)
	@$(TOOLKIT) chat $(NAME)

heal: $(STAMP)
	@$(TOOLKIT) heal $(NAME) $(if $(SCORE_TEST_AGAIN),--score-test-again)

sft: $(STAMP)
	@$(TOOLKIT) sft run $(NAME)

# What a published system claims, and what its recipe shows: every variant that a claim names is run.
study: $(STAMP)
	@$(TOOLKIT) study run $(NAME)
	@$(TOOLKIT) study table runs/$(NAME)/study/study.json

publish: $(STAMP)
	@test -n "$(REPO)" || { echo "name the repository: make publish DOMAIN=$(DOMAIN) REPO=org/name"; exit 2; }
	@$(TOOLKIT) publish run $(NAME) --repo $(REPO) $(if $(TO),--to $(TO))

checks: $(DEV_STAMP)
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy

test: $(DEV_STAMP)
	@HF_HUB_OFFLINE=1 $(VENV)/bin/pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

# The guide: reference pages and charts written anew, then site/, in which no link may be broken.
docs: $(DEV_STAMP)
	@$(VENV)/bin/python docs/tools/reference.py
	@$(VENV)/bin/python docs/tools/architecture.py
	@$(VENV)/bin/python docs/tools/cluster.py
	@$(VENV)/bin/python docs/tools/pictures.py
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet --clean
	@echo "site/index.html"

bench: $(STAMP)
	@$(VENV)/bin/python benchmarks/loss.py

# Questions a second against lm-eval's, on the model that `make cpt` fetched.
bench-choices: $(STAMP)
	@$(VENV)/bin/python benchmarks/choices.py runs/$(NAME)/general

# Both engines on the same models; half an hour on 2 cores, as mergekit takes minutes for some.
bench-merge: $(DEV_STAMP)
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

# Estimates of memory and time beside what training takes, process by process. Ten minutes.
bench-plan: $(STAMP)
	@$(VENV)/bin/python benchmarks/plan.py

# Memory of each of several processes that train one model, phase by phase. Half an hour.
bench-processes: $(DEV_STAMP)
	@$(VENV)/bin/python benchmarks/processes.py

# The search of a run that exists, against mergekit-yaml and lm-eval; then its training repeated on
# general text alone. A quarter of an hour on 2 cores.
bench-search: $(DEV_STAMP)
	@$(VENV)/bin/python benchmarks/search.py --recipe $(NAME)

# Simulated studies through the real search and decision: is the choice right, is it found? Half an
# hour on one core.
bench-choice: $(STAMP)
	@$(VENV)/bin/python benchmarks/choice_studies.py --studies 200

# What four merge methods keep of a run's gain and recover of its loss, on test; beside runs/.
bench-methods: $(STAMP)
	@$(VENV)/bin/python benchmarks/methods.py --recipe $(NAME)

# Environment and caches; runs/ holds your models and stays.
clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build site *.egg-info
