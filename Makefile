# Each target sets up what it needs in this checkout (.venv), as root or not; the second time that costs nothing.
#   make demo       run the examples                     make check   lint, types, floors, public surface, docs
#   make test       the tests, some 10 minutes           make bench   measure against Ray, Celery, ProcessPoolExecutor
#   make test-long  all tests, the long ones too         make clean   remove .venv and what was built

SEED ?= 1
JOBS ?= 4
PYTEST = .venv/bin/python -m pytest --seed=$(SEED) --hypothesis-seed=$(SEED)

.PHONY: demo test test-long check bench clean

demo: .venv/farcall
	@scripts/demo

test: export PYTHONDONTWRITEBYTECODE =  # what one process has compiled, or pytest has rewritten, the others load
test: .venv/dev
	$(PYTEST) -n $(JOBS) --dist loadfile -m "not long" $(ARGS)

test-long: .venv/dev
	$(PYTEST) --timeout=3600 $(ARGS)
	$(PYTEST) --timeout=1800 --over ssh tests/conformance
	$(PYTEST) --timeout=1800 --over workers tests/conformance

check: .venv/dev
	@scripts/check

bench: .venv/bench
	.venv/bin/python -m bench calls $(ARGS)
	.venv/bin/python -m bench images $(ARGS)
	.venv/bin/python -m bench scale $(ARGS)
	.venv/bin/python -m bench elsewhere $(ARGS)

.venv/farcall: pyproject.toml scripts/setup
	@scripts/setup && touch $@

.venv/dev: pyproject.toml scripts/setup
	@scripts/setup dev notebook && touch $@ .venv/farcall

.venv/bench: pyproject.toml scripts/setup
	@scripts/setup bench && touch $@ .venv/farcall

clean:
	rm -rf .venv dist build .pytest_cache .ruff_cache .hypothesis .import_linter_cache
