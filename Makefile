# The commands of this repository. Each installs what it needs first; ops/install.sh says what that is.

PYTHON := .venv/bin/python
SOURCES := kvorum cluster storage native tests ops setup.py

.PHONY: help up down test lint soak bench proto clean

help:
	@echo "make up      install, build, start a local three-node cluster, and show that it works"
	@echo "make down    stop it (its data stays in .kvorum/)"
	@echo "make test    lint, types and tests"
	@echo "make soak    the long tests: thousands of simulator seeds, fuzzing"
	@echo "make bench   kvorum and etcd side by side, into ops/bench/"
	@echo "make lint    only ruff and mypy"
	@echo "make proto   generate kvorum/etcd_pb2.py anew from kvorum/etcd.proto"
	@echo "make clean   remove what was built, the cluster's data and .venv/"

up:
	@ops/install.sh run
	@$(PYTHON) ops/up.py up $(if $(BASE_PORT),--base-port $(BASE_PORT))

down:
	@if [ -x $(PYTHON) ]; then $(PYTHON) ops/up.py down; else echo "nothing is installed, so nothing runs"; fi

test: lint
	$(PYTHON) -m pytest

lint:
	@ops/install.sh test
	$(PYTHON) -m ruff check $(SOURCES)
	$(PYTHON) -m ruff format --check $(SOURCES)
	$(PYTHON) -m mypy

soak:
	@ops/install.sh test
	$(PYTHON) -m pytest -m soak

bench:
	@ops/install.sh test
	$(PYTHON) -m ops.bench

proto:
	@ops/install.sh test
	@ops/proto.sh

clean: down
	rm -rf .venv .kvorum build *.egg-info native/_*.c native/*.o native/*.so native/compiled native/build_san ops/bench/bin
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find kvorum cluster storage native tests ops -name __pycache__ -type d -prune -exec rm -rf {} +
