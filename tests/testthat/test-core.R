test_that("a Python that cannot import the core is an error that says so at each attempt", {
  skip_on_cran()
  skip_without_flax()
  folder <- withr::local_tempdir()
  writeLines("raise ImportError('no jax here')", file.path(folder, "jax.py"))
  withr::local_envvar(PYTHONPATH = folder)
  printed <- run_r("library(kerasflax)
    ask <- function() kerasflax:::core_function('FlaxLayer')
    for (i in 1:2) cat(tryCatch(ask(), kerasflax_error_package = conditionMessage))")
  expect_match(printed, "no jax here.*Run `library.kerasflax.*no jax here")
})

test_that("a build shows progress to a user who waits, and is quiet in scripts", {
  skip_without_flax()
  # cli shows progress on a terminal only, and at most five times a second. `cli.dynamic` makes it
  # take the output for a terminal.
  withr::local_envvar(CLI_TICK_TIME = "1")
  code <- function(interactive) {
    c(
      "options(cli.dynamic = TRUE, cli.progress_show_after = 0, cli.progress_clear = FALSE)",
      sprintf("options(rlang_interactive = %s)", interactive),
      "suppressMessages(library(kerasflax))",
      "nn <- reticulate::import('flax.linen')",
      "layer <- layer_flax_module_wrapper(",
      "  module = nn$Sequential(list(nn$Dense(8), nn$Dense(9))), seed = 1",
      ")",
      "layer(matrix(1, 2, 3))",
      "cat('bar:', is.null(kerasflax:::the$bar), '\\n')"
    )
  }
  shown <- run_r(code(TRUE))
  expect_match(shown, "Building.*100%")
  expect_match(shown, "bar: TRUE", fixed = TRUE)
  quiet <- run_r(code(FALSE))
  expect_match(quiet, "bar: TRUE", fixed = TRUE)
  expect_no_match(quiet, "Building", fixed = TRUE)
})
