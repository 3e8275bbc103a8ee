# Definitions as they stand at the top level of a package or script.
definitions <- "
  linen <- function() reticulate::import('flax.linen')
  nnx <- function() reticulate::import('flax.nnx')
  mlp <- kerasflax::flax_module('Mlp', units = 3L, sizes = c(1L, 2L), activation = NULL,
    call = function(self, inputs) (linen()$Dense(self$units))(inputs))
  deep <- kerasflax::flax_module('Deep', units = 3L, api = 'nnx',
    setup = function(self, rngs) self$dense <- nnx()$Linear(4L, self$units, rngs = rngs),
    call = function(self, inputs) self$dense(inputs))
  lazy <- kerasflax::flax_lazy(function(rngs) nnx()$Linear(4L, 2L, rngs = rngs))
  part <- deep(units = 5)
  stopifnot(!reticulate::py_available())"

# Code whose `result` is what layers of the four modules give for one input.
use <- "
  suppressMessages(library(kerasflax))
  x <- matrix(seq(-1, 1, length.out = 8), 2)
  modules <- list(mlp(units = 6, sizes = c(3, 4)), deep(units = 5), lazy, part)
  layers <- lapply(modules, \\(module) layer_flax_module_wrapper(module = module, seed = 1))
  result <- lapply(layers, \\(layer) as.array(layer(x)))"

expected <- function() result_of(c(definitions, use))

test_that("definitions at the top level of a package are used in sessions that load the package", {
  skip_without_flax()
  folder <- withr::local_tempdir()
  package <- file.path(folder, "netpkg")
  dir.create(file.path(package, "R"), recursive = TRUE)
  writeLines(
    c(
      "Package: netpkg", "Version: 0.1", "Title: Networks", "Author: A", "Maintainer: A <a@b.org>",
      "Description: Networks.", "License: MIT", "Imports: kerasflax, reticulate"
    ),
    file.path(package, "DESCRIPTION")
  )
  writeLines("export(mlp, deep, lazy, part)", file.path(package, "NAMESPACE"))
  writeLines(definitions, file.path(package, "R", "nets.R"))
  library <- file.path(folder, "library")
  dir.create(library)
  installed <- callr::rcmd(
    "INSTALL",
    c("--no-docs", paste0("--library=", library), package),
    libpath = .libPaths(),
    stderr = "2>&1"
  )
  expect_identical(installed$status, 0L, info = installed$stdout)
  load <- sprintf("library(netpkg, lib.loc = '%s')", library)
  outputs <- result_of(c(load, use))
  expect_identical(lapply(outputs, dim), list(c(2L, 6L), c(2L, 5L), c(2L, 2L), c(2L, 5L)))
  expect_equal(outputs, expected())

  # A new session finds the classes of a saved model without having used them.
  path <- file.path(folder, "model.keras")
  saved <- result_of(c(load, use, sprintf(
    "model <- keras_model_sequential(4) |> layer_flax_module_wrapper(mlp(units = 6))
     save_model(model, '%s')
     result <- predict(model, x, verbose = 0)",
    path
  )))
  expect_identical(
    result_of(c(load, "library(kerasflax)", "x <- matrix(seq(-1, 1, length.out = 8), 2)", sprintf(
      "result <- predict(load_model('%s'), x, verbose = 0)",
      path
    ))),
    saved
  )
})

test_that("definitions reach a new session in an RDS file and in a workspace", {
  skip_without_flax()
  folder <- withr::local_tempdir()
  rds <- file.path(folder, "nets.rds")
  workspace <- file.path(folder, "nets.RData")
  # Once before Python has seen the definitions, and once after.
  for (before in list("", use)) {
    result_of(c(
      definitions,
      before,
      sprintf("saveRDS(list(mlp, deep, lazy, part, linen, nnx), '%s')", rds),
      sprintf("save(mlp, deep, lazy, part, linen, nnx, file = '%s')", workspace),
      "result <- TRUE"
    ))
    outputs <- result_of(c(sprintf("load('%s')", workspace), use))
    expect_identical(lapply(outputs, dim), list(c(2L, 6L), c(2L, 5L), c(2L, 2L), c(2L, 5L)))
    names <- "names(nets) <- c('mlp', 'deep', 'lazy', 'part', 'linen', 'nnx')"
    read <- c(sprintf("nets <- readRDS('%s')", rds), names, "list2env(nets, globalenv())")
    expect_equal(result_of(c(read, use)), outputs)
  }
})

test_that("Python objects in a definition are found again by name, or the error says what to do", {
  skip_without_flax()
  path <- withr::local_tempfile(fileext = ".rds")
  result_of(c(
    "suppressMessages(library(kerasflax))
     nn <- reticulate::import('flax.linen'); nnx <- reticulate::import('flax.nnx')
     act <- flax_module('Act', f = nn$relu, call = function(self, inputs) self$f(inputs))
     made <- flax_module('Made', part = nn$Dense(2L), call = function(self, inputs) inputs)",
    sprintf(
      "saveRDS(list(act, made, flax_lazy(nnx$Linear, 4, 2), act()), '%s'); result <- TRUE",
      path
    )
  ))
  result <- result_of(c(
    "suppressMessages(library(kerasflax)); x <- matrix(-1:2 + 0, 1)",
    sprintf("nets <- readRDS('%s')", path),
    "errors <- lapply(list(\\() nets[[2]](), \\() layer_flax_module_wrapper(x, nets[[4]])), \\(f)
       tryCatch(f(), error = \\(e) list(class(e)[[1]], cli::ansi_strip(conditionMessage(e)))))
     result <- list(
       act = c(as.array(layer_flax_module_wrapper(x, nets[[1]]()))),
       lazy = dim(as.array(layer_flax_module_wrapper(x, nets[[3]]))),
       errors = errors,
       printed = utils::capture.output(print(nets[[2]]))
     )"
  ))
  expect_equal(result$act, c(0, 0, 1, 2))
  expect_identical(result$lazy, c(1L, 2L))
  expect_snapshot(result$errors)
  expect_identical(result$printed, "<flax_module> Made(part = <Python object>)")
})
