# The commands that a developer types. CI runs the same targets and nothing else.
# Targets run `setup` first, which takes seconds when everything is installed.

installed := build/library/kerasflax/DESCRIPTION
sources := DESCRIPTION $(wildcard NAMESPACE) $(shell find R inst -not -path '*__pycache__*')

.PHONY: help setup install demo examples test fuzz newest floors document format lint check \
  check-anywhere cran-user articles site gpu soak bench release

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 16

setup: ## install what development needs: R, R packages, and Python packages in .venv
	@tools/setup

install: $(installed) ## install the package into build/library
	@:

$(installed): $(sources) | setup
	@tools/install

demo: install ## train a Flax module on scikit-learn's digits
	@tools/setup +demo
	@tools/run Rscript inst/examples/digits.R build

examples: install ## run all scripts in inst/examples, or NAMES="text vae"
	@tools/setup +examples
	@tools/examples $(NAMES)

test: ## run pytest and testthat; the last line holds the totals
	@tools/test

fuzz: setup ## read damaged and hostile files, and write odd trees, for MINUTES=2
	@tools/run python tests/fuzz/fuzz.py --minutes $(or $(MINUTES),2)

newest: ## test and check with the newest versions, in a Debian 13 root (as root)
	@tools/newest

floors: setup ## test with the oldest versions that DESCRIPTION and pyproject.toml allow
	@tools/floors

document: setup ## write man/ and NAMESPACE from the roxygen comments
	@tools/run Rscript -e 'roxygen2::roxygenise()'

articles: install ## render the articles again: all of them, or NAMES="kerasflax devices"
	@tools/setup +demo
	@tools/articles $(NAMES)

site: install ## build the site into build/site, and open every page of it in Chromium
	@tools/setup pandoc chromium @website +site
	@tools/site

format: setup ## format the Python code
	@tools/run ruff check --fix --exit-zero .
	@tools/run ruff format .

lint: install ## check style, types and spelling: ruff, mypy, lintr, spelling
	@tools/run ruff check . && tools/run ruff format --check .
	@tools/run mypy
	@tools/run Rscript tools/lint.R
	@tools/run Rscript tools/spelling.R

check: ## run R CMD check --as-cran, without Python and with it
	@tools/setup pandoc tidy qpdf pdflatex="texlive-latex-base texlive-fonts-recommended"
	@tools/check $(OPTIONS)

check-anywhere: ## run R CMD check with this machine's R and Python, on any system
	@Rscript tools/r-packages.R install
	@python -m pip install --quiet ".[files,test]"
	@Rscript tools/check-anywhere.R $(OPTIONS)

cran-user: ## install the tarball and run keras3's example as a CRAN user would
	@tools/setup pandoc
	@tools/cran-user

gpu: install ## run the Python suite and some benchmarks on a GPU, if there is one
	@tools/gpu

soak: setup ## build, train and drop BUILDS=300 models; fail if memory grows
	@tools/run python tests/fuzz/soak.py --builds $(or $(BUILDS),300)

bench: install ## compare with plain Flax and FlaxLayer in ROUNDS=5, into bench/results.md
	@tools/setup +bench
	@tools/run python bench/run.py --rounds $(or $(ROUNDS),5)

release: ## build the tarball, the sdist and the wheel; name what is left to fill in
	@tools/release
