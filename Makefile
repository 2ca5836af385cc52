# The commands a person needs. Everything runs in .venv, from the versions in a lock file.
PYTHON ?= python3.11
# requirements.gpu.lock on machines with NVIDIA GPUs
LOCK ?= requirements.lock
# the cluster file of `make down`
CLUSTER ?= cluster.yaml
VENV := .venv
RUN := $(VENV)/bin/python
# two files at a time, for two cores, in the order that conftest.py puts them in
FILES := --numprocesses 2 --dist loadfile --no-loadscope-reorder
# Debian's packages that the hosts of cluster-test are made of
LAB := iproute2 openssh-server rsync slurmctld slurmd slurm-client munge
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: setup tune test fast mutants chaos gpu-check rehearse down cluster-test check ui

setup: $(VENV)/.ready  ## create the environment

$(VENV)/.ready: $(LOCK) pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --requirement $(LOCK)
	$(RUN) -m pip install --quiet --no-deps --editable .
	@touch $@

tune: setup  ## the main job on embedded phantom patients, from data to report
	$(RUN) jobs/tune_lung.py

test: setup  ## the whole test suite
	$(RUN) -m pytest $(FILES)

fast: setup  ## the tests that start neither Ray nor other processes, and do not train
	$(RUN) -m pytest $(FILES) -m "not slow"

mutants: setup  ## small mistakes in modules that promises rest on, and a list of those that no test notices
	$(RUN) tests/mutants/run.py

chaos: setup  ## break things on purpose, many times, and print a table of what was survived; hours
	$(RUN) tests/chaos/run.py

gpu-check: setup  ## on a machine with an NVIDIA GPU: what it shows of this project, as a table and as JSON; ten minutes
	$(RUN) tests/gpu/run.py --out gpu-check.json

rehearse: setup  ## ray up cluster.yaml with AWS and its machines played here, and a night in which one thing after the other fails
	RAYMED_REHEARSE=1 $(RUN) -m pytest tests/cluster/test_ray_up.py tests/cluster/test_night_of_faults.py

down: setup  ## end the cluster of CLUSTER=cluster.yaml: its jobs save what they are at, MLflow's database is copied, then `ray down`
	$(VENV)/bin/ray exec $(CLUSTER) 'python ~/raymed/jobs/wind_down.py'
	$(VENV)/bin/ray down --yes $(CLUSTER)

cluster-test: setup  ## as root: clusters of hosts on this machine, also under SLURM, whose power is cut; installs what they need
	for tool in ip sshd rsync slurmctld slurmd sbatch munged; do command -v $$tool > /dev/null || \
		{ apt-get install -y --no-install-recommends $(LAB) && break; } || exit 1; done
	RAYMED_LAB=1 $(RUN) -m pytest tests/cluster

check: setup  ## lint, format and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

ui: setup  ## look at the runs in MLflow, on this machine only
	$(VENV)/bin/mlflow ui --host 127.0.0.1 --backend-store-uri sqlite:///runs/mlflow.db
