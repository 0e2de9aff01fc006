# Everything runs from a virtual environment of its own, made on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test quick test-avx2 test-app test-gpu test-site lint docs outputs figures format clean

demo: $(VENV)/.installed
	$(BIN)/invdiff demo --output demo/comparison.png

# One thread each: two busy-waiting processes would slow each other down.
test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not app and not site"

quick: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow and not docs and not app and not site"

# A laptop without bfloat16, as far as a larger processor can stand in for it: what a network runs on, once more.
PROCESSOR := tests/test_network.py tests/test_own_network.py tests/test_zoo.py tests/test_solve.py tests/test_cli.py
ELSEWHERE := import_is_light or lists_and_help or the_command_itself or every_operator_by_name

test-avx2: $(VENV)/.installed
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 OMP_NUM_THREADS=1 \
	$(BIN)/python -m pytest -n 2 $(PROCESSOR) -m "not slow and not docs" -k "not ($(ELSEWHERE))"

# The page in a headless Chromium ($CHROMIUM, or one on the path); a line says so where there is none.
test-app: $(VENV)/.installed-app
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_app_browser.py -m app -rs

# Where an NVIDIA GPU is; each of these skips itself elsewhere.
test-gpu: $(VENV)/.installed
	$(BIN)/python -m pytest -m gpu -rs

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The built pages: their links, and in a headless Chromium, where there is one, the search, the slides and a phone's width.
test-site: docs
	$(BIN)/python -m pip install --quiet "playwright>=1.45"
	INVDIFF_SITE=site $(BIN)/python -m pytest tests/test_site.py -m site -rs

# What the code of the pages prints and draws, where that code has changed.
outputs: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python docs/outputs.py --changed

figures: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[figures]"
	$(BIN)/python docs/figures/make.py --jobs 2

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev,ray]"
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@

$(VENV)/.installed-app: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[app]" "playwright>=1.45"
	touch $@

clean:
	rm -rf $(VENV) site build dist demo/comparison.png .pytest_cache .ruff_cache .mypy_cache
