# make setup   .venv with everything pinned
# make train   train; ARGS="--pipeline dali" adds flags
# make test    all tests, on four processors at most; ARGS="-k store" chooses
# make lint    style and types: ruff and mypy
# make ffcv    the FFCV pipeline too (needs Debian packages, which it names)

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
IN = $(VENV)/bin/python -m
FFCV_NEEDS = libopencv-dev libturbojpeg0-dev pkg-config

.PHONY: setup train test lint ffcv

setup: $(VENV)/installed

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; assert (3, 10) <= sys.version_info < (3, 14), \"Tenfold needs Python 3.10 to 3.13: make PYTHON=python3.11\""
	$(PYTHON) -m venv $(VENV)
	$(IN) pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dali,events,lint,onnx,test]"
	touch $@

train: setup
	$(IN) train $(ARGS)

test: setup
	$(IN) pytest --numprocesses logical --maxprocesses 4 --dist worksteal $(ARGS)

lint: setup
	$(IN) ruff check .
	$(IN) ruff format --check .
	$(IN) mypy

# --no-deps: FFCV asks for opencv-python, which needs a screen's libraries, and for five packages that its loader never imports
ffcv: setup
	@pkg-config --exists opencv4 libturbojpeg || { echo "error: FFCV needs headers: apt-get install $(FFCV_NEEDS), then make ffcv again" >&2; exit 2; }
	$(IN) pip install --quiet --disable-pip-version-check --constraint constraints.txt opencv-python-headless tqdm setuptools
	$(IN) pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps ffcv
