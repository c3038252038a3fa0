# `make demo` runs the main job, `make test` runs lint, types and tests. Both set up .venv first.

PYTHON ?= python3
BIN := .venv/bin
# Of the benchmarks alone.
THREADS ?= $(shell getconf _NPROCESSORS_ONLN)
BENCH := --results benchmarks/results --benchmark-columns min,median,rounds --benchmark-sort name --quiet
# What bench-gpu and test-gpu run in: PYTHON where it is given, else .venv where it is made, else the Python at hand. They
# need torch, triton, numpy, numba, scipy, safetensors and pytest, and no network.
AT_HAND = $(if $(and $(filter file,$(origin PYTHON)),$(wildcard .venv/.ready)),$(BIN)/python,$(PYTHON))
GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | head -1)
# One thread a process: the models of the tests and the demo are too small to share among threads.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test docs lint format types pytest suite bench-once test-slow torture fuzz test-gpu sanitize bench \
	bench-deltas bench-deltas-large bench-peers bench-gpu performance aot tune miniature induction \
	results demo-results clean

demo: .venv/.ready
	$(BIN)/rlforget demo --force

# Side by side, for types and benchmarks keep one core busy: one after the other they would leave the others idle.
test: lint
	$(MAKE) --jobs 2 suite types bench-once

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: .venv/.ready
	$(BIN)/mypy

pytest: suite bench-once

suite: .venv/.ready
	$(BIN)/pytest -n auto --dist worksteal -m "not slow"

# Every benchmark runs, on tiny tensors.
bench-once: .venv/.ready
	$(BIN)/pytest benchmarks --benchmark-disable --quiet

# The documentation, into site/; a warning is an error.
docs: .venv/.ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# What takes minutes; then the kernels for every dtype with every option, of which the test command compiles a part.
test-slow: .venv/.ready
	$(BIN)/pytest -m slow
	$(BIN)/pytest tests/kernels -m "not slow" --hypothesis-profile thorough

# Kills and failing disks at every call that writes, ten minutes at most; the figures of docs/reliability.md.
torture: .venv/.ready
	RLFORGET_TORTURE_SUMMARY=benchmarks/results/torture.json $(BIN)/pytest tests/torture/test_torture.py -m slow -s

# A hundred thousand damaged delta files and histories, ten minutes at most; the figures of docs/reliability.md.
fuzz: .venv/.ready
	RLFORGET_FUZZ_SUMMARY=benchmarks/results/fuzz.json $(BIN)/pytest tests/torture/test_fuzz.py -m slow -s

# Every operator on the device, in less than nine minutes; SECTION=rollback takes tests/gpu/test_rollback.py alone.
test-gpu:
	PYTHONPATH=.:kernels $(AT_HAND) -m pytest $(if $(SECTION),tests/gpu/test_$(SECTION).py,tests/gpu) -m gpu \
		-p tests.gpu.at_hand --seconds 450 --hypothesis-profile thorough

# The same tests under a tool of the CUDA toolkit that finds what is read or written outside of a tensor, many times slower:
# SECTION as above. TOOL=racecheck, synccheck or initcheck looks for other faults.
TOOL ?= memcheck
sanitize:
	PYTHONPATH=.:kernels PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $(TOOL) --error-exitcode 1 \
		$(AT_HAND) -m pytest $(if $(SECTION),tests/gpu/test_$(SECTION).py,tests/gpu) -m gpu -p tests.gpu.at_hand \
		-o timeout=0

# Operators, a whole diff and its first call, on all cores unless THREADS says else; `make performance` then writes docs/performance.md.
bench: export OMP_NUM_THREADS = $(THREADS)
bench: .venv/.ready
	$(BIN)/pytest benchmarks --ignore benchmarks/circuits $(BENCH)

# Delta files: sizes, speeds and released tools, in about 6 minutes; then memory on 16 GB and time on 4, which takes 55 GB of disk.
# PEERS is the Python that has the tools (`pip install -e .[bench-deltas]`), if not this one.
bench-deltas bench-deltas-large: export OMP_NUM_THREADS = $(THREADS)
bench-deltas: .venv/.ready
	$(BIN)/python -m benchmarks.delta_files --peer-python "$(PEERS)" --results benchmarks/results

bench-deltas-large: .venv/.ready
	$(BIN)/python -m benchmarks.delta_files --large --results benchmarks/results

# Whole jobs beside mergekit, TorchJD and git-theta, and docs/comparison.md from all results; without PEERS, the page alone.
bench-peers: export OMP_NUM_THREADS = $(THREADS)
bench-peers: .venv/.ready
	$(BIN)/python -m benchmarks.peers $(if $(PEERS),--peer-python $(PEERS)) --results benchmarks/results

# A model of 3 billion parameters and every operator on the device, in less than nine minutes, into benchmarks/results;
# SECTION is one or several of model, fisher, subspace and operators.
bench-gpu: export OMP_NUM_THREADS = $(THREADS)
bench-gpu:
	PYTHONPATH=.:kernels $(AT_HAND) -m benchmarks.gpu $(SECTION)

performance: .venv/.ready
	$(BIN)/python -m benchmarks.report

aot: .venv/.ready
	$(BIN)/python -m rlforget_kernels.aot --arch 80 90 100

# On the GPU at hand, into the table that is committed.
tune: .venv/.ready
	PYTHONPATH=.:kernels $(BIN)/python -m rlforget_kernels.tune

# Trains the shipped miniature again, from nothing, and compares its scores with the shipped ones.
miniature: .venv/.ready
	$(BIN)/rlforget miniature --seed 0 --out runs/miniature --force

# Trains the induction model of tests/circuits again, from nothing, and prints what its heads are worth.
induction: .venv/.ready
	$(BIN)/python -m tests.circuits.planted.induction

# Makes docs/results.md, the recovery study; killed, it goes on where it was.
results: .venv/.ready
	$(BIN)/rlforget experiment configs/miniature.yaml --out runs/experiment --jobs 2
	mkdir -p docs/images
	cp runs/experiment/results.md runs/experiment/results.csv docs/
	cp runs/experiment/images/*.png docs/images/

# The figures of docs/demo.md and docs/learning.md: the demo on three seeds, and every domain by both trainers.
demo-results: .venv/.ready
	$(BIN)/rlforget demo --seed 0 --seed 1 --seed 2 --out runs/results --force
	cp runs/results/results.md docs/demo.md
	$(BIN)/python -m rlforget.experiments.learning docs/learning.md
	mkdir -p docs/images && cp runs/results/demo.png docs/images/demo.png

# With an NVIDIA GPU, pip's own choice of torch (CUDA) stands; without one, the versions of constraints.txt, torch
# first, because asked for in any other way torch brings gigabytes of CUDA packages along.
.venv/.ready: setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade pip
ifeq ($(GPU),)
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e ".[all]"
else
	$(BIN)/pip install --quiet -e ".[all]"
endif
	touch $@

clean:
	rm -rf .venv build site *.egg-info runs
