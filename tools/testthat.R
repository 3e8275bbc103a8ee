# Runs the R tests against the installed package, for tools/test; leaves "passed failed skipped" in build/testthat.txt.
# Everything that CRAN would skip runs here.
Sys.setenv(NOT_CRAN = "true")
# Two worker processes, each with its own Python.
Sys.setenv(TESTTHAT_PARALLEL = "TRUE", TESTTHAT_CPUS = "2")
results <- testthat::test_dir(
  "tests/testthat",
  reporter = testthat::ProgressReporter$new(max_failures = Inf),
  package = "kerasflax",
  load_package = "installed",
  stop_on_failure = FALSE
)
tests <- as.data.frame(results)
bad <- tests$failed > 0 | tests$error
# Code outside of tests has a row without a name; it counts when it fails.
tests <- tests[bad | (!is.na(tests$test) & nzchar(tests$test)), ]
bad <- tests$failed > 0 | tests$error
writeLines(paste(sum(!bad & !tests$skipped), sum(bad), sum(!bad & tests$skipped)), "build/testthat.txt")
quit(status = as.integer(any(bad)))
