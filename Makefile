# What a developer types. CI runs the same targets and nothing else.
# Every target starts with `setup`, which takes a second when there is nothing to set up.

installed := build/library/kerasflax/DESCRIPTION
sources := DESCRIPTION $(wildcard NAMESPACE) $(shell find R inst -not -path '*__pycache__*')

.PHONY: help setup install demo test fuzz newest floors document format lint check cran-user gpu soak bench

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

setup: ## install what development needs: R, R packages, and Python packages in .venv
	@tools/setup

install: $(installed) ## install the package into build/library
	@:

$(installed): $(sources) | setup
	@tools/install

demo: install ## train a Flax module on scikit-learn's digits
	@tools/setup +demo
	@tools/run Rscript inst/examples/digits.R build

test: ## run pytest and testthat; the last line holds the totals
	@tools/test

fuzz: setup ## read damaged and hostile files, and write odd trees, for MINUTES=2
	@tools/run python tests/fuzz/fuzz.py --minutes $(or $(MINUTES),2)

newest: ## run the tests and R CMD check with the newest R, Python and packages, in a Debian 13 root (as root)
	@tools/newest

floors: setup ## run the tests with the oldest versions that DESCRIPTION and pyproject.toml allow
	@tools/floors

document: setup ## write man/ and NAMESPACE from the roxygen comments
	@tools/run Rscript -e 'roxygen2::roxygenise()'

format: setup ## format the Python code
	@tools/run ruff check --fix --exit-zero .
	@tools/run ruff format .

lint: install ## check form and types: ruff, mypy, lintr
	@tools/run ruff check . && tools/run ruff format --check .
	@tools/run mypy
	@tools/run Rscript tools/lint.R

check: ## R CMD check --as-cran, without a Python and with one
	@tools/setup pandoc tidy
	@tools/check $(OPTIONS)

cran-user: setup ## install the tarball and run the README's example as a user from CRAN would
	@tools/cran-user

gpu: install ## run the Python suite and some benchmarks on a GPU, where there is one
	@tools/gpu

soak: setup ## build, train and drop 300 models in a process, and fail where its memory grows (BUILDS=300: 20 minutes)
	@tools/run python tests/fuzz/soak.py --builds $(or $(BUILDS),300)

bench: install ## measure kerasflax against plain Flax and FlaxLayer, into bench/results.md (ROUNDS=5: most of an hour)
	@tools/setup +bench
	@tools/run python bench/run.py --rounds $(or $(ROUNDS),5)
