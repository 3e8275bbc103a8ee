# Lints the R code, for `make lint`; every lint is a failure.
linters <- lintr::linters_with_defaults(
  line_length_linter = lintr::line_length_linter(120),
  # Modules, layers and their Python names (`nn$Dense`, `MyFlaxModule`) keep their own case.
  object_name_linter = NULL
)
lints <- lapply(c("R", "tests", "inst", "tools"), lintr::lint_dir, linters = linters, pattern = "[.]R$")
for (found in lints) print(found)
quit(status = as.integer(sum(lengths(lints)) > 0))
