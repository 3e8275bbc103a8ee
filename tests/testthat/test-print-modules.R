mlp_constructor <- function() {
  flax_module("MLP",
    units = 64L, rate = 0.1, classes = flax_field("integer"), inner = NULL,
    setup = function(self) self$dense <- flax_linen()$Dense(self$units),
    call = function(self, inputs, training = FALSE) self$dense(inputs)
  )
}

test_that("a constructor shows its fields and methods, also to completion and str()", {
  mlp <- mlp_constructor()
  expect_identical(names(formals(mlp)), c("units", "rate", "classes", "inner", "..."))
  expect_identical(mlp$units, 64L)
  expect_identical(names(formals(mlp$call)), c("self", "inputs", "training"))
  expect_null(mlp$nothing)
  expect_identical(
    utils::.DollarNames(mlp, ""),
    c("units", "rate", "classes", "inner", "setup", "call")
  )
  expect_identical(utils::.DollarNames(mlp, "^ra"), "rate")
  expect_snapshot({
    mlp
    str(mlp)
  })
})

test_that("a Linen module prints its class, fields, parts and methods", {
  skip_without_flax()
  nn <- flax_linen()
  module <- mlp_constructor()(classes = 3, inner = nn$relu)
  expect_snapshot({
    module
    str(module)
    mlp_constructor()(classes = 3, inner = module)
  })
  Coded(nn$Module) %py_class% {
    `__annotations__` <- reticulate::dict(units = reticulate::import_builtins()$int)
    units <- 64L
    `__call__` <- nn$compact(\(self, inputs) (nn$Dense(self$units))(inputs))
  }
  expect_snapshot(Coded(units = 5L))
})

test_that("an NNX module prints its fields, parts and weights", {
  skip_without_flax()
  nnx <- reticulate::import("flax.nnx")
  net <- flax_module("Net",
    units = 4L, api = "nnx",
    setup = function(self, rngs) {
      self$hidden <- nnx$Linear(3, self$units, rngs = rngs)
      self$scale <- nnx$Param(as_jax(c(1, 2)))
    },
    call = function(self, inputs) self$hidden(inputs)
  )
  expect_snapshot(net(rngs = nnx$Rngs(0L)))
})

test_that("a layer prints its name, its module, and whether it is built, with its weights", {
  skip_without_flax()
  layer <- layer_flax_module_wrapper(module = flax_linen()$Dense(2L), name = "head")
  expect_match(capture.output(layer), "head", all = FALSE, fixed = TRUE)
  expect_match(capture.output(layer), "not built", all = FALSE, fixed = TRUE)
  expect_match(capture.output(str(layer)), "<FlaxLayer> head: Dense(features = 2L", fixed = TRUE)
  layer(matrix(1, 1, 3))
  printed <- capture.output(layer)
  expect_match(printed, "<FlaxLayer> head", all = FALSE, fixed = TRUE)
  expect_match(printed, "2 weights with 8 parameters, 8 trainable", all = FALSE, fixed = TRUE)
  expect_match(printed, "<Linen module> Dense", all = FALSE, fixed = TRUE)
  expect_no_match(printed, "signature")
  expect_match(capture.output(summary(layer)), "kernel +3x2", all = FALSE)
})

test_that("the summary of a model names the modules in it", {
  skip_without_flax()
  model <- keras_model_sequential(3) |>
    layer_flax_module_wrapper(mlp_constructor()(classes = 3), name = "flaxen") |>
    layer_dense(1)
  for (printed in list(capture.output(summary(model)), capture.output(print(model)))) {
    expect_match(printed, "  flaxen: MLP(classes = 3L, units = 64L", all = FALSE, fixed = TRUE)
    expect_match(printed, "Total params", all = FALSE, fixed = TRUE)
  }
  plain <- keras_model_sequential(3) |> layer_dense(1)
  expect_no_match(capture.output(summary(plain)), "Flax")
})

test_that("a module without fields prints as one", {
  skip_without_flax()
  plain <- flax_module("Plain", call = function(self, inputs) inputs)
  expect_identical(capture.output(str(plain())), " Plain() ")
  expect_identical(capture.output(plain()), c("<Linen module> Plain", "methods: call"))
  TwoTowers(flax_linen()$Module) %py_class% {
    `__call__` <- \(self, inputs) inputs
  }
  expect_identical(capture.output(str(TwoTowers())), " TwoTowers() ")
})

test_that("a class of modules from `%py_class%` or Python prints its fields and methods", {
  skip_without_flax()
  nn <- flax_linen()
  nnx <- reticulate::import("flax.nnx")
  builtins <- reticulate::import_builtins()
  types <- list(units = builtins$int, rate = builtins$float, act = builtins$object)
  Mlp(nn$Module) %py_class% {
    `__annotations__` <- do.call(reticulate::dict, types)
    rate <- 0.5
    act <- nn$relu
    `__call__` <- \(self, inputs) inputs
    encode <- function(self, inputs) inputs
  }
  Net(nnx$Module) %py_class% {
    `__init__` <- function(self, rngs, units = 4L, ...) NULL
    `__call__` <- function(self, inputs) inputs
  }
  Empty(nnx$Module) %py_class% {
    `__call__` <- function(self, inputs) inputs
  }
  expect_snapshot({
    Mlp
    str(Mlp)
    Net
    str(Net)
    Empty
    nn$Sequential
  })
  expect_match(
    capture.output(str(nnx$Linear)),
    "<NNX module class> Linear(in_features = integer, out_features = integer, use_bias = TRUE",
    fixed = TRUE
  )
})

test_that("completion knows the arguments of a class of NNX modules, which still accepts others", {
  skip_without_flax()
  nnx <- reticulate::import("flax.nnx")
  Net(nnx$Module) %py_class% {
    `__init__` <- function(self, rngs, units = 4L) NULL
  }
  expect_identical(names(formals(Net)), c("rngs", "units", "..."))
  expect_identical(formals(Net)$units, 4L)
  expect_identical(names(formals(nnx$Linear))[1:3], c("in_features", "out_features", "..."))
  expect_error(Net(NULL, other = 1), "unexpected keyword argument 'other'")
})

test_that("other classes of Python print as reticulate prints them", {
  skip_without_flax()
  Plain(NULL) %py_class% {
    `__init__` <- function(self, size = 1) NULL
  }
  others <- list(Plain, reticulate::import("flax.nnx")$Param, keras3::keras$layers$Dense)
  by_reticulate <- function(generic, class) {
    capture.output(utils::getS3method(generic, "python.builtin.object")(class))
  }
  for (class in others) {
    expect_identical(capture.output(print(class)), by_reticulate("print", class))
    expect_identical(capture.output(str(class)), by_reticulate("str", class))
  }
})
