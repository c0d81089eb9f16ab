# `make demo` and `make test` build their own environment in .venv with the tested versions.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

VERL   := .venv-verl
VSTAMP := $(VERL)/.installed

VLLM   := .venv-vllm
LSTAMP := $(VLLM)/.installed

# What a change is most likely to break: the core, metrics, tasks, options, and a few short training runs.
FAST := core core_edge_cases core_ingredients core_invariances metrics noise tasks jsonl digits countdown cli runs trl_identity

.PHONY: demo test test-fast test-gpu test-verl test-vllm fuzz hostile soak lint docs clean

demo: $(STAMP)
	$(BIN)/covgrpo demo

# One worker a core; a worker that is done takes tests from another.
test: $(STAMP)
	$(BIN)/python -m pytest -n logical --dist worksteal

test-fast: $(STAMP)
	$(BIN)/python -m pytest -m "not slow or quick" $(FAST:%=tests/test_%.py)

# verl's trainer on CPUs, with Ray: 12 to 20 minutes on 2 cores. COVGRPO_VERL_PYTHON=... takes another environment with verl.
test-verl: $(STAMP) $(if $(COVGRPO_VERL_PYTHON),,$(VSTAMP))
	COVGRPO_VERL_PYTHON=$(or $(COVGRPO_VERL_PYTHON),$(abspath $(VERL))/bin/python) $(BIN)/python -m pytest tests/verl_cpu

# A real vLLM on CPUs: `covgrpo eval --engine vllm` beside our sampler. COVGRPO_VLLM_PYTHON=... takes another environment.
test-vllm: $(STAMP) $(if $(COVGRPO_VLLM_PYTHON),,$(LSTAMP))
	COVGRPO_VLLM_PYTHON=$(or $(COVGRPO_VLLM_PYTHON),$(abspath $(VLLM))/bin/python) $(BIN)/python -m pytest tests/vllm_cpu

# On a machine with a GPU: the tests that need one, then the table of docs/gpu.md. GPU_PYTHON=... is another environment.
test-gpu: $(if $(GPU_PYTHON),,$(STAMP))
	mkdir -p build
	status=0; \
	$(or $(GPU_PYTHON),$(BIN)/python) -m pytest tests/gpu --junitxml=build/gpu-tests.xml || status=$$?; \
	$(or $(GPU_PYTHON),$(BIN)/python) scripts/gpu_report.py --tests build/gpu-tests.xml || status=$$?; \
	exit $$status

# Mutated input to every command, on Linux: 15 minutes of one core. FUZZ="1000 --seed 3" is a short one. Inputs that
# fail are kept in build/fuzz.
fuzz: $(STAMP)
	$(BIN)/python scripts/fuzz.py $(FUZZ)

# Completions made to hurt a verifier. HOSTILE="1000 --seed 3" is a short one.
hostile: $(STAMP)
	$(BIN)/python scripts/hostile_completions.py build/hostile $(or $(HOSTILE),10000) --check

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation in site/, without network: `python -m http.server -d site` shows it, search included.
# (Not with --quiet, which drops the warnings before --strict counts them.)
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# torch first and alone: where a CPU build is configured or installed, nothing larger is fetched with the rest.
$(STAMP): pyproject.toml constraints.txt src/covgrpo/__init__.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

$(VSTAMP): pyproject.toml constraints-verl.txt
	test -x $(VERL)/bin/python || $(PYTHON) -m venv $(VERL)
	$(VERL)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-verl.txt torch
	$(VERL)/bin/python -m pip install --quiet --disable-pip-version-check -r constraints-verl.txt
	$(VERL)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

# A wheel and an sdist in dist/, checked. With TAG=v0.1.0 the version must be the tag's as well.
.PHONY: dist
dist: $(STAMP)
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python scripts/check_dist.py dist $(TAG)

# One version of TRL against this checkout: make try-trl VERSION=1.17.0
.PHONY: try-trl
try-trl: $(STAMP)
	$(BIN)/python scripts/try_trl.py $(VERSION)

$(LSTAMP): constraints-vllm.txt
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r constraints-vllm.txt
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

# Tiny runs killed, starved and damaged, then compared with one that was not: Linux and a C compiler; minutes of
# one core and more. FAULTS="--operations 200 --moments 100" changes the counts, scripts/faults.py lists them.
.PHONY: faults
faults: $(STAMP)
	$(BIN)/python scripts/faults.py $(FAULTS)

# Two hours of a small model with evaluation, records and checkpoints; memory, files and time are read every ten seconds.
# Called again it resumes the run. SOAK="--hours 6" changes the time.
soak: $(STAMP)
	test -d runs/small_model || $(BIN)/python scripts/small_model.py --output runs/small_model
	$(BIN)/python scripts/soak.py runs/soak $(SOAK) -- --model runs/small_model

clean:
	rm -rf $(VENV) $(VERL) $(VLLM) runs build dist site
