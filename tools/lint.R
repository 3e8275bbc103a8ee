# Lints the R code for `make lint`. Every lint is a failure.
linters <- lintr::linters_with_defaults(
  line_length_linter = lintr::line_length_linter(100),
  # Modules, layers and their Python names (`nn$Dense`, `MyFlaxModule`) keep their own case.
  object_name_linter = NULL,
  # Newer versions of lintr no longer have this linter among their defaults.
  cyclocomp_linter = NULL
)
lint <- function(folder, linters) {
  lintr::lint_dir(folder, linters = linters, pattern = "[.]R$")
}

# Outside R/, names come from attached packages or from `%py_class%`, and lintr cannot see them.
elsewhere <- linters[names(linters) != "object_usage_linter"]
lints <- c(list(lint("R", linters)), lapply(c("tests", "inst", "tools"), lint, elsewhere))
for (found in lints) print(found)
quit(status = as.integer(sum(lengths(lints)) > 0))
