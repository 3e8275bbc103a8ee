lazy_model <- function(...) keras_model_sequential(3) |> layer_flax_module_wrapper(...)

test_that("the layer creates the module from its seed, with the values of plain Flax", {
  skip_without_flax()
  nnx <- flax_nnx()
  model <- lazy_model(flax_lazy(nnx$Linear, 3, out_features = 4), seed = 5)
  expected <- as.array(nnx$Linear(3L, 4L, rngs = nnx$Rngs(5L))$kernel$get_value())
  expect_equal(flax_variables(model)[[1]]$params$kernel, expected, tolerance = 1e-6)
})

test_that("R functions create modules from arguments and submodules", {
  skip_without_flax()
  nnx <- flax_nnx()
  net <- function(rngs, units, part) {
    nnx$Sequential(nnx$Linear(3L, units, rngs = rngs), nnx$relu, part)
  }
  layer <- layer_flax_module_wrapper(
    module = flax_lazy(net, units = 4L, part = flax_lazy(nnx$Linear, 4, 2))
  )
  expect_identical(dim(as.array(layer(matrix(1, 2, 3)))), c(2L, 2L))
  conv <- layer_flax_module_wrapper(module = flax_lazy(nnx$Conv, 1, 2, kernel_size = c(3, 3)))
  expect_identical(dim(as.array(conv(array(1, c(2, 5, 5, 1))))), c(2L, 5L, 5L, 2L))
})

test_that("a lazy module prints the call that it stands for", {
  skip_without_flax()
  nnx <- flax_nnx()
  net <- function(rngs, ...) NULL
  expect_output(print(flax_lazy(nnx$Linear, 3, 4)), "<flax_lazy> Linear(3, 4)", fixed = TRUE)
  expect_output(
    print(flax_lazy(net, 2L, sizes = c(3, 4), part = flax_lazy(nnx$Linear, 3, 4), bias = NULL)),
    "<flax_lazy> net(2L, sizes = list(3, 4), part = Linear(3, 4), bias = NULL)",
    fixed = TRUE
  )
  expect_output(print(flax_lazy(net)), "<flax_lazy> net()", fixed = TRUE)
})

test_that("a factory that does not create a module is an error", {
  skip_without_flax()
  nnx <- flax_nnx()
  expect_snapshot(error = TRUE, {
    flax_lazy()
    flax_lazy(NULL)
    flax_lazy("Linear")
    flax_lazy(nnx$Linear(3L, 4L, rngs = nnx$Rngs(0L)))
    flax_lazy(nnx$Linear, 3, 4, rngs = nnx$Rngs(0L))
    layer_flax_module_wrapper(module = flax_lazy(\(rngs) 3))
    layer_flax_module_wrapper(module = flax_lazy(nnx$Linear, 3.5, 4))
    layer_flax_module_wrapper(module = nnx$Linear)
  })
})

test_that("an R condition in a factory function arrives unchanged", {
  skip_without_flax()
  factory <- function(rngs) rlang::abort("no module today", class = "my_condition")
  expect_error(
    layer_flax_module_wrapper(module = flax_lazy(factory)),
    "no module today",
    class = "my_condition"
  )
})

test_that("a saved lazy module is restored from its class, its function's name or custom_objects", {
  skip_without_flax()
  path <- withr::local_tempfile(fileext = ".keras")
  begin <- "
    library(kerasflax)
    nnx <- reticulate::import('flax.nnx')
    net <- function(rngs, units = 4L) nnx$Sequential(nnx$Linear(3L, units, rngs = rngs), nnx$relu)
    Net(nnx$Module) %py_class% {
      initialize <- function(self, units, rngs) {
        self$units <- units
        self$linear <- nnx$Linear(3L, units, rngs = rngs)
      }
      `__call__` <- function(self, inputs) nnx$tanh(self$linear(inputs))
    }
    x <- matrix(seq(-1, 1, length.out = 12), 4)"
  modules <- c(
    "flax_lazy(net, units = 5L)",
    "flax_lazy(Net, 5L)",
    "Net(5L, rngs = nnx$Rngs(1L))",
    "nnx$Linear(3L, 5L, rngs = nnx$Rngs(1L))"
  )
  for (module in modules) {
    old <- result_of(c(
      begin,
      sprintf(
        "model <- keras_model_sequential(3) |> layer_flax_module_wrapper(%s)
       compile(model, 'sgd', 'mse')
       fit(model, x, matrix(0, 4, 5), verbose = 0)
       save_model(model, '%s', overwrite = TRUE)
       result <- predict(model, x, verbose = 0)",
        module,
        path
      )
    ))
    expect_identical(dim(old), c(4L, 5L))
    expect_identical(
      result_of(c(begin, sprintf("result <- predict(load_model('%s'), x, verbose = 0)", path))),
      old
    )
  }
  nnx <- flax_nnx()
  model <- lazy_model(flax_lazy(\(rngs) nnx$Linear(3L, 4L, rngs = rngs)))
  save_model(model, path, overwrite = TRUE)
  expect_error(load_model(path), "custom_objects")
  again <- load_model(path, custom_objects = list(Linear = \(rngs) nnx$Linear(3L, 4L, rngs = rngs)))
  expect_identical(
    predict(again, matrix(1, 2, 3), verbose = 0),
    predict(model, matrix(1, 2, 3), verbose = 0)
  )
})

test_that("a module created at once, with lazy submodules, equals the layer's module", {
  skip_without_flax()
  nnx <- flax_nnx()
  dense <- flax_module(
    "Dense",
    units = 4L,
    api = "nnx",
    setup = function(self, rngs) self$linear <- nnx$Linear(3, self$units, rngs = rngs),
    call = function(self, inputs) self$linear(inputs)
  )
  outer <- flax_module(
    "Outer",
    first = NULL,
    api = "nnx",
    setup = function(self, rngs) self$last <- dense(units = 2),
    call = function(self, inputs) self$last(self$first(inputs))
  )
  x <- matrix(1, 2, 3)
  layers <- lapply(list(nnx$Rngs(1L), NULL), \(rngs) {
    layer_flax_module_wrapper(module = outer(first = dense(units = 3), rngs = rngs), seed = 1)
  })
  outputs <- lapply(layers, \(layer) as.array(layer(x)))
  expect_identical(dim(outputs[[1]]), c(2L, 2L))
  expect_equal(outputs[[1]], outputs[[2]], tolerance = 1e-6)
  expect_snapshot(error = TRUE, {
    dense(rngs = 0L)
    layer_flax_module_wrapper(module = dense)
    flax_module("Dense", api = "nnx", setup = function(self) NULL, call = function(self, inputs) {
      inputs
    })
  })
})

test_that("text for a factory that is not valid UTF-8 is an error", {
  skip_without_flax()
  nnx <- flax_nnx()
  expect_error(
    flax_lazy(nnx$Conv, 1, 2, kernel_size = 3, padding = latin_word("unknown")),
    "must be valid UTF-8",
    class = "kerasflax_error_argument"
  )
})
