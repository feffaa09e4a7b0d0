# Two commands: `make demo` and `make test`. Both make .venv first; see underlay/environment.py.

.PHONY: help setup demo test test-oldest fuzz real ablation gpu clean
.DEFAULT_GOAL := help

# Everything here runs on the wheels in .venv alone. A sourced ROS distribution is left out: its Python packages are
# built for its own NumPy, its middleware may not be among the wheels. With a distribution, use colcon and ros2 launch.
unexport PYTHONPATH PYTHONHOME AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH RMW_IMPLEMENTATION
# PYTHON names the interpreter to build .venv on; any Python 3 can look for one.
export PYTHON
python3 := $(firstword $(foreach name,python3 python3.13 python3.12 python3.11 python3.10 $(PYTHON),$(shell command -v $(name))))
# The ROS 2 distribution to run on: jazzy, or kilted in an environment of its own. ROS=kilted on the command line only.
ROS := jazzy
venv := .venv$(if $(filter-out jazzy,$(ROS)),.$(ROS))/bin/python
# A folder with checkouts of launch, launch_ros, osrf_pycommon and rcl_interfaces, for the tests of the launch file.
export LAUNCH

help:
	@echo "make demo       trains a small detector, runs it as a ROS 2 node on a recorded bag, prints its score"
	@echo "make test       format, lint and type checks, then the tests; with ROS=kilted on ROS 2 Kilted"
	@echo "                with LAUNCH=FOLDER the launch file is run too; docs/distributions.md says what has to lie in there"
	@echo "make test-oldest  the tests with the oldest NumPy, OpenCV and others that are supported (a tenth of a GB)"
	@echo "make fuzz       spoilt files, messages and values against every reader for an hour; MINUTES=5 for five"
	@echo "make real       trains the methods once on photographs, plays the scored pairs as a bag (some 20 minutes)"
	@echo "make ablation   the tables of docs/ablation.md (hours)"
	@echo "make gpu        what only a CUDA GPU can tell: exactness, memory, speed (minutes)"
	@echo "make setup      only makes .venv, which the others do by themselves"
	@echo "make clean      removes the environments, runs and everything built"

setup:
	@$(if $(python3),"$(python3)" underlay/environment.py --ros "$(ROS)",echo "setup: error: no Python 3 on PATH" >&2; exit 1)

demo: setup
	@$(venv) -m rscmd_ros.demo

# A worker of pytest that crashes ends the run: with another in its place, xdist waits for the lost tests for ever.
# Folders of tests that passed, gigabytes, go at once; said here, because Debian 12's pytest refuses it in pyproject.toml.
pytest := -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 \
    --durations 20 -o tmp_path_retention_policy=failed
test: setup
	@$(venv) -m ruff format --check .
	@$(venv) -m ruff check .
	@$(venv) -m mypy
	@$(venv) $(pytest)

test-oldest:
	@$(if $(python3),"$(python3)" underlay/environment.py --ros "$(ROS)" --oldest,echo "setup: error: no Python 3 on PATH" >&2; exit 1)
	@$(venv:/bin/python=.oldest/bin/python) $(pytest)

MINUTES := 60
fuzz: setup
	@$(venv) test/fuzz.py --minutes $(MINUTES)

real: setup
	@$(venv) benchmarks/real_pairs.py

ablation: setup
	@$(venv) benchmarks/ablation.py

gpu: setup
	@$(venv) benchmarks/gpu.py

clean:
	rm -rf .venv .venv.* runs build install log .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
