# make            what there is
# make demo       sets up, then runs the gateway on a real radiograph
# make test       sets up, then runs every test

VENV ?= .venv
# 3.11 and 3.12 first: the embedded Redis has wheels for these.
PYTHON ?= $(shell for name in python3.11 python3.12 python3 python3.13 python3.14; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$name && break; done)
FILES ?=
# More options of pytest, such as PYTEST="-k delivery -x".
PYTEST ?=

BIN := $(VENV)/bin
# Whoever has done its share takes from the others: each server that tests share is started once as a rule.
PROCESSES := -n 2 --dist worksteal
# For tests that wait for servers for half of their time: one process more than cores.
WAITING_PROCESSES := -n 3 --dist worksteal
# Test processes side by side: one thread of torch each.
check test test-long soak: export OMP_NUM_THREADS := 1
# The many processes that tests start take what the first of them compiled.
unexport PYTHONDONTWRITEBYTECODE
# Each with a file it installs.
DEBIAN_PACKAGES := \
	dcmtk:/usr/bin/storescu \
	dicom3tools:/usr/bin/dciodvfy \
	orthanc:/usr/sbin/Orthanc \
	orthanc-dicomweb:/usr/share/orthanc/plugins/libOrthancDicomWeb.so \
	redis-server:/usr/bin/redis-server \
	prometheus:/usr/bin/promtool \
	rsyslog:/usr/sbin/rsyslogd \
	rsyslog-gnutls:/usr/lib/*/rsyslog/lmnsd_gtls.so \
	postgresql:/usr/lib/postgresql/*/bin/initdb \
	strace:/usr/bin/strace \
	iproute2:/usr/sbin/ip \
	openssl:/usr/bin/openssl \
	poppler-utils:/usr/bin/pdftotext \
	default-jre-headless:/usr/bin/java \
	libpixelmed-java:/usr/share/java/pixelmed.jar \
	chromium:/usr/bin/chromium \
	systemd:/usr/bin/systemd-analyze \
	npm:$(or $(shell command -v npm),/usr/bin/npm)

.DEFAULT_GOAL := help
.PHONY: help venv demo check test test-long soak lock audit sbom licences conformance screenshots format clean
.PHONY: debian-packages ohif axe

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r target text; do \
		printf '  make %-12s %s\n' "$$target" "$$text"; done

venv: $(VENV)/.installed-dev ## Make the virtual environment for development (VENV=folder, PYTHON=interpreter)

demo: $(VENV)/.installed-demo ## Run the gateway on a real chest film, or on FILES="a.dcm b.jpeg folder/"
	$(BIN)/hilum demo $(FILES)

check: venv debian-packages ## Format, lint, types, import rules, unit tests: a minute on two cores
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy -n 2
	$(BIN)/lint-imports
	$(BIN)/pytest $(PROCESSES) -q -m "not long" tests/unit $(PYTEST)

# The tests of the viewer have the machine to themselves: a browser that renders in software takes all of it.
test: venv debian-packages ## Run all tests, on real servers, but the long ones: a quarter of an hour on two cores
	$(BIN)/pytest $(WAITING_PROCESSES) -m "not long and not viewer" tests $(PYTEST)
	-@$(MAKE) --no-print-directory ohif axe
	$(BIN)/pytest -m "viewer and not long" tests/viewers $(PYTEST) || [ $$? -eq 5 ]

test-long: venv debian-packages ## Run the long tests: 17 minutes on two cores
	$(BIN)/pytest $(WAITING_PROCESSES) -m "long and not viewer" tests $(PYTEST) || [ $$? -eq 5 ]
	$(BIN)/pytest -m "long and viewer" tests/viewers $(PYTEST) || [ $$? -eq 5 ]

soak: venv debian-packages ## Push 1,000 studies while everything is killed at random: half an hour
	$(BIN)/python -m tests.e2e.soak

conformance: venv ## Write deploy/conformance.md anew from its template and the code
	$(BIN)/python deploy/conformance.py

screenshots: venv debian-packages ## Write the pictures of the README anew, from the demo in Chromium
	$(BIN)/python deploy/screenshots/take.py

lock: venv ## Write deploy/locks anew: the newest packages that pyproject.toml allows, with hashes
	$(BIN)/python deploy/lock.py

audit: venv ## Ask which locked packages have known vulnerabilities
	$(BIN)/python deploy/audit.py

sbom: venv ## Write sbom.json: packages, licences, weights (CycloneDX)
	$(BIN)/python deploy/sbom.py > sbom.json

licences: venv ## Write deploy/licences.md anew
	$(BIN)/python deploy/sbom.py --licences > deploy/licences.md

format: venv ## Format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Remove the virtual environment and everything built or cached
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .ohif .axe demo-out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The viewer of the tests, in the version and with the hash of pin.json.
ohif: .ohif/package.json

.ohif/package.json: deploy/ohif/pin.json deploy/ohif/fetch.mjs
	@echo "fetching the viewer OHIF: 48 MB, once"
	@node deploy/ohif/fetch.mjs .ohif
	@touch $@

# What the tests ask whether everybody can use the dashboard (MPL-2.0; it is in no package of ours).
axe: .axe/package.json

.axe/package.json: tests/viewers/axe.json deploy/ohif/fetch.mjs
	@node deploy/ohif/fetch.mjs .axe tests/viewers/axe.json
	@touch $@

# A stamp is newer than pyproject.toml when what that asks for is installed.
$(VENV)/.installed-demo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[demo]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(VENV)/.installed-demo $@

$(BIN)/python:
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "Python 3.11 or newer is needed: put it on PATH, or make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv >/dev/null; \
		else echo "$(PYTHON) can make no virtual environment: apt-get install python3-venv" >&2; exit 1; fi
	@echo "setting up $(VENV) with $(PYTHON): a few minutes, once"
	@$(PYTHON) -m venv $(VENV)

# The servers of the tests. A package's own service is not started: the tests start theirs.
debian-packages:
	@missing=; for pair in $(DEBIAN_PACKAGES); do \
		ls $${pair#*:} >/dev/null 2>&1 || missing="$$missing $${pair%%:*}"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
		echo "not installed, so the tests that need them will fail (apt-get install$$missing)"; exit 0; fi; \
	echo "installing$$missing"; \
	policy=/usr/sbin/policy-rc.d; \
	if [ ! -e $$policy ]; then \
		trap "rm -f $$policy" EXIT; printf '#!/bin/sh\nexit 101\n' > $$policy; chmod +x $$policy; fi; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -qq --no-install-recommends $$missing >/dev/null
