# make demo: the main job on bundled data.  make test: all tests, in minutes.  make quick: those that take seconds.
# Each makes the environment it needs in .venv and uses it again next time.

VENV := .venv
PY := $(VENV)/bin/python
RUNS := runs/demo
# Further packages, for example other versions than the newest.
WITH :=
# Processes that share the tests, each with one thread.
WORKERS := 2
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses $(WORKERS) --dist worksteal

.PHONY: help demo test test-long test-python3.11 test-python3.12 test-lowest quick validate docs lint format install clean

help:
	@echo "make demo     learn, convert, train, evaluate and report on bundled digits (results in $(RUNS))"
	@echo "make test     run the test suite (in $(WORKERS) processes; on more cores: make test WORKERS=8)"
	@echo "make test-long     run the long forms of tests, which take 80 minutes of a core"
	@echo "make test-python3.11, make test-python3.12     run the test suite with that Python"
	@echo "make test-lowest   run the test suite with the oldest PyTorch that is supported"
	@echo "make quick    run the tests that take seconds"
	@echo "make validate compare neuron, rule and network with Brian2 at full size (results in runs/validation)"
	@echo "make docs     build the pages as a site (docs/_build/html)"
	@echo "make lint     check style (ruff) and types (mypy)"
	@echo "make format   apply the project's formatting (ruff)"
	@echo "make install  make or update the environment in $(VENV)"
	@echo "make clean    remove $(VENV) and caches (not runs/)"

install: $(VENV)/.installed

# The first working Python 3.11 or 3.12.
$(VENV)/.installed: pyproject.toml
	@set -e; for candidate in $(PYTHON) python3.12 python3.11 python3 python; do \
	  if $$candidate -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; then \
	    python=$$candidate; break; fi; done; \
	if [ -z "$$python" ]; then \
	  echo "error: Python 3.11 or 3.12 is needed; install one, or name it: make install PYTHON=/path/to/python" >&2; exit 2; fi; \
	echo "Installing safe-dnn into $(VENV) with $$($$python --version) (PyTorch is large: this takes a few minutes)"; \
	$$python -m venv $(VENV); \
	$(PY) -m pip install --quiet --upgrade pip; \
	$(PY) -m pip install --quiet --editable '.[dev]' $(WITH); \
	touch $@; \
	echo "Environment ready."

demo: install
	@mkdir -p $(RUNS)
	@echo "[1/6] Learning spiking features, layer by layer"
	@$(PY) -m snn.learn --data digits --preset retina-digits --out $(RUNS)/snn.h5
	@echo "[2/6] Converting them into a frozen front end"
	@$(PY) -m bridge.convert $(RUNS)/snn.h5 --out $(RUNS)/frontend.h5
	@echo "[3/6] Training SAFE-MobileNetV2"
	@$(PY) -m hybrid.train --data digits --backbone mobilenet_v2 --frontend $(RUNS)/frontend.h5 \
	  --variations.feature-norm --out $(RUNS)/safe.h5
	@echo "[4/6] Training the baseline"
	@$(PY) -m hybrid.train --data digits --backbone mobilenet_v2 --variant baseline --out $(RUNS)/baseline.h5
	@echo "[5/6] Measuring both under noise"
	@$(PY) -m hybrid.evaluate $(RUNS)/safe.h5 $(RUNS)/baseline.h5 \
	  --noise clean awgn:40 awgn:30 awgn:25 awgn:20 awgn:15 awgn:12 salt-pepper:0.05 salt-pepper:0.20 \
	  --confusion --out $(RUNS)/results.csv
	@echo "[6/6] Writing the report"
	@$(PY) -m hybrid.report $(RUNS) --out $(RUNS)/report.html
	@echo "Open $(RUNS)/report.html in a browser. Its figures also lie beside it as PNG files."

test: install
	@echo "Running the tests"
	@$(PYTEST)

test-long: install
	@$(PYTEST) -m long

# Each in an environment of its own.
test-python3.11 test-python3.12: test-python%:
	@$(MAKE) test VENV=.venv-$* PYTHON=python$*

test-lowest:
	@$(MAKE) test VENV=.venv-lowest WITH="torch==2.11.0 torchvision==0.26.0"

quick: install
	@$(PYTEST) -m "not slow"

validate: install
	@mkdir -p runs/validation
	@$(PY) -m validation.freq_response --out runs/validation/freq_response.h5
	@$(PY) -m validation.stdp_window --out runs/validation/stdp_window.h5
	@$(PY) -m validation.network --out runs/validation/network.h5

docs: install
	@$(PY) -m sphinx --quiet --fail-on-warning --keep-going --builder html docs docs/_build/html
	@echo "Open docs/_build/html/index.html"

lint: install
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

format: install
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

clean:
	rm -rf $(VENV) docs/_build docs/_notebooks .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
