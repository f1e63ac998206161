# make demo   train Small on the embedded dataset, from nothing to a tested model
# make test   the tests that fit into a few minutes: those that take over 20 s are left out
# make test-all   all tests, which CI runs
# make check  format, lint, types, and which room may import which
# make results CIFAR10=PATH   the figures of docs/results.md, from a zip or folder train/CLASS + test/CLASS
# make soak   kill runs a thousand times, let memory run out, watch the cap, find the least one: a piece of about half
#             an hour; repeat it. The slope of memory needs half an hour in one go, once, at the end of the first piece
# make peers  timm, apart from the environment, for the parity tests
# make peers-benchmark   what ours is measured beside as well: Lightning and transformers
# make throughput CIFAR10=PATH   ours beside its peers, a piece of half an hour on a quiet machine; repeat it

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PEERS := .peers
# of each of the parts of a piece of `make soak` but the last; a part that is done takes none
MINUTES ?= 6
# of the last one
SLOPE_MINUTES ?= 30
# Linux: torch's own index has builds without CUDA (0.2 GB instead of 5). Elsewhere the default index has them.
TORCH_INDEX ?= $(if $(filter Linux,$(shell uname -s)),https://download.pytorch.org/whl/cpu)
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH := $(shell grep -E "^torch(vision)?==" constraints.txt)
INSTALL := $(PIP) install --quiet -c constraints.txt

.PHONY: demo test test-all check results soak peers peers-benchmark throughput clean

demo: $(VENV)/.installed
	$(BIN)/lowmem-seq train small --data shapes --epochs 20 --max-ram 2GB

test: $(VENV)/.installed
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -m "not slow"

test-all: $(VENV)/.installed
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest

check: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

results: $(VENV)/.installed
	$(BIN)/python -m benchmarks.results --data "$(CIFAR10)"

soak: $(VENV)/.installed
	$(BIN)/python -m benchmarks.soak --preset tiny --kills 700 --minutes $(MINUTES)
	$(BIN)/python -m benchmarks.soak --preset small --kills 300 --minutes $(MINUTES)
	$(BIN)/python -m benchmarks.shortages --failures 100 --minutes $(MINUTES)
	$(BIN)/python -m benchmarks.caps --minutes $(MINUTES)
	$(BIN)/python -m benchmarks.least --minutes $(MINUTES)
	$(BIN)/python -m benchmarks.slope --minutes $(SLOPE_MINUTES)

peers: $(PEERS)/.installed

peers-benchmark: $(PEERS)/.benchmark-installed

throughput: $(PEERS)/.benchmark-installed
	LOWMEM_SEQ_PEERS=$(PEERS) LOWMEM_SEQ_CIFAR10="$(CIFAR10)" $(BIN)/python -m benchmarks.throughput

# torch goes first, so that nothing else pulls in the CUDA build. Where its own index is out of reach, the default
# one serves; torchvision then comes without its dependencies, which would ask for one exact build of torch.
$(VENV)/.installed: pyproject.toml constraints.txt hatch_build.py $(wildcard lowmem_seq/models/native/*.[ch])
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(PIP) install --quiet --retries 1 --index-url $(TORCH_INDEX) $(TORCH) 2>/dev/null ||) \
	{ $(INSTALL) torch && $(INSTALL) --no-deps torchvision; }
	$(INSTALL) -e '.[dev]'
	touch $@

$(PEERS)/.installed: $(VENV)/.installed
	$(PIP) install --quiet --no-deps --target $(PEERS) timm==1.0.31
	touch $@

# without dependencies, for torch and numpy are the environment's; what else they import comes with accelerate
$(PEERS)/.benchmark-installed: $(PEERS)/.installed
	$(PIP) install --quiet --no-deps --target $(PEERS) lightning==2.6.6 lightning-utilities==0.15.3 \
	  torchmetrics==1.9.0 transformers==5.23.0 tokenizers==0.23.3 regex==2026.11.15
	touch $@

clean:
	rm -rf $(VENV) $(PEERS) .mypy_cache .pytest_cache .ruff_cache .hypothesis
