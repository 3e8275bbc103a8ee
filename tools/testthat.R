# Runs the R tests against the installed package: all of them, for tools/test, or the files whose
# names match its argument, a pattern. Writes the numbers of passed, failed and skipped tests to
# build/testthat.txt. Tests that CRAN would skip run too.
Sys.setenv(NOT_CRAN = "true")
# There are two worker processes, each with its own Python.
Sys.setenv(TESTTHAT_PARALLEL = "TRUE", TESTTHAT_CPUS = "2")
results <- testthat::test_dir(
  "tests/testthat",
  filter = if (length(commandArgs(TRUE)) > 0) commandArgs(TRUE)[[1]],
  reporter = testthat::ProgressReporter$new(max_failures = Inf),
  package = "kerasflax",
  load_package = "installed",
  stop_on_failure = FALSE
)
tests <- as.data.frame(results)
bad <- tests$failed > 0 | tests$error
# Code outside tests has a row without a name; it counts if it fails.
tests <- tests[bad | (!is.na(tests$test) & nzchar(tests$test)), ]
bad <- tests$failed > 0 | tests$error
counts <- c(sum(!bad & !tests$skipped), sum(bad), sum(!bad & tests$skipped))
writeLines(paste(counts, collapse = " "), "build/testthat.txt")
quit(status = as.integer(any(bad)))
