# The answers of `runs_examples()` in a new session under several settings of the environment, and
# whether Python runs at the end.
answers_in <- function(settings, env = character()) {
  result_of(c(
    sprintf("Sys.setenv(%s = '%s')", names(env), env),
    "settings <- ",
    deparse(settings),
    "answers <- vapply(settings, FUN.VALUE = NA, FUN = function(setting) {
       Sys.unsetenv(c('NOT_CRAN', 'IN_PKGDOWN', 'RETICULATE_PYTHON'))
       do.call(Sys.setenv, as.list(setting))
       kerasflax:::runs_examples()
     })
     result <- list(answers = answers, python = reticulate::py_available())"
  ))
}

test_that("without a user, examples need a named Python, and do not start Python without need", {
  skip_on_cran()
  python <- Sys.getenv("RETICULATE_PYTHON")
  result <- answers_in(list(
    cran = c(RETICULATE_PYTHON = python),
    also_cran = c(NOT_CRAN = "false", RETICULATE_PYTHON = python),
    developer = c(NOT_CRAN = "true"),
    missing = c(NOT_CRAN = "true", RETICULATE_PYTHON = "no/such/python"),
    managed = c(IN_PKGDOWN = "true", RETICULATE_PYTHON = "managed")
  ))
  expect_false(any(result$answers))
  expect_false(result$python)
})

test_that("examples run for developers and for the site if Python has Flax", {
  skip_without_flax()
  python <- Sys.getenv("RETICULATE_PYTHON")
  result <- answers_in(list(
    developer = c(NOT_CRAN = "true", RETICULATE_PYTHON = python),
    site = c(IN_PKGDOWN = "true"),
    cran = c(RETICULATE_PYTHON = python)
  ))
  expect_identical(result$answers, c(developer = TRUE, site = TRUE, cran = FALSE))
})

test_that("examples do not run if Python has no Flax", {
  skip_without_flax()
  hook <- withr::local_tempdir()
  writeLines(
    c(
      "import importlib.abc, sys",
      "class NoFlax(importlib.abc.MetaPathFinder):",
      "    def find_spec(self, name, path, target=None):",
      "        if name == 'flax':",
      "            raise ModuleNotFoundError(name)",
      "sys.meta_path.insert(0, NoFlax())"
    ),
    file.path(hook, "sitecustomize.py")
  )
  result <- answers_in(
    list(c(NOT_CRAN = "true", RETICULATE_PYTHON = Sys.getenv("RETICULATE_PYTHON"))),
    env = c(PYTHONPATH = hook)
  )
  expect_identical(result, list(answers = FALSE, python = TRUE))
})

test_that("examples run for a user whose Python has Flax", {
  skip_without_flax()
  rlang::local_interactive()
  withr::local_envvar(NOT_CRAN = NA, IN_PKGDOWN = NA)
  expect_true(runs_examples())
})
