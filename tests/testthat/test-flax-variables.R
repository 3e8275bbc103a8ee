# A layer whose state has every kind of value that R must represent.
kinds <- function() {
  nn <- flax_linen()
  jnp <- reticulate::import("jax.numpy", convert = FALSE)
  values <- list(
    half = jnp$array(list(0.1, -2.5), "bfloat16"),
    least = jnp$array(list(-2147483648, 5), "int32"),
    most = jnp$array(list(4294967295, 1), "uint32"),
    flags = jnp$array(list(TRUE, FALSE)),
    scalar = jnp$array(2.5, "float32"),
    count = jnp$array(3L, "int32"),
    large = jnp$array(4294967295, "uint32"),
    single = jnp$array(list(1.5), "float32"),
    key = reticulate::import("jax.random", convert = FALSE)$key(7L),
    table = jnp$reshape(jnp$arange(6, dtype = "float16"), list(2L, 3L))
  )
  Kinds(nn$Module) %py_class% {
    `__call__` <- nn$compact(\(self, inputs) {
      for (name in names(values)) {
        self$variable("state", name, \() values[[name]])
      }
      (nn$Dense(3L))(inputs)
    })
  }
  layer <- layer_flax_module_wrapper(module = Kinds())
  layer(matrix(1, 2, 4))
  layer
}

test_that("values of every dtype survive a round trip through R", {
  skip_without_flax()
  layer <- kinds()
  state <- flax_variables(layer)$state
  expect_identical(state$half, array(c(0.10009765625, -2.5), 2))
  expect_identical(state$least, array(c(-2147483648, 5), 2))
  expect_identical(state$most, array(c(4294967295, 1), 2))
  expect_identical(state$flags, array(c(TRUE, FALSE), 2))
  expect_identical(state$scalar, 2.5)
  expect_identical(state$count, 3L)
  expect_identical(state$large, 4294967295)
  expect_identical(state$single, array(1.5, 1))
  expect_identical(state$key, array(c(0, 7), 2))
  expect_identical(state$table, matrix(c(0, 1, 2, 3, 4, 5), 2, byrow = TRUE))

  bytes <- function() {
    lapply(flax_variables(layer, "jax")$state[names(state) != "key"], \(x) {
      reticulate::py_str(x$tobytes())
    })
  }
  before <- bytes()
  zeros <- rapply(state, \(x) x * 0L, how = "replace")
  zeros$flags[] <- FALSE
  flax_variables(layer) <- list(state = zeros)
  expect_identical(flax_variables(layer)$state$most, array(c(0, 0), 2))
  expect_false(identical(bytes(), before))
  flax_variables(layer) <- list(state = state)
  expect_identical(flax_variables(layer)$state, state)
  expect_identical(bytes(), before)
})

test_that("any tree of arrays survives a round trip through R bit for bit", {
  skip_without_flax()
  skip_if_not(reticulate::py_module_available("hypothesis"), "hypothesis is not installed")
  any_tree <- reticulate::import_from_path("any_tree", test_path())
  any_tree$check(function(layer, other) {
    flax_variables(other) <- flax_variables(layer)
    NULL
  })
  # The property can fail.
  expect_error(any_tree$check(\(layer, other) NULL), "AssertionError")
  # R CMD check would report the folder.
  expect_false(dir.exists(test_path(".hypothesis")))
})

test_that("a model's variables are named by layer, and assignment keeps the other variables", {
  skip_without_flax()
  nn <- flax_linen()
  model <- keras_model_sequential(4) |>
    layer_flax_module_wrapper(nn$Dense(3L), name = "first") |>
    layer_dense(3) |>
    layer_flax_module_wrapper(nn$Dense(2L), name = "second")
  before <- flax_variables(model)
  expect_named(before, c("first", "second"))
  flax_variables(model) <- list(second = list(params = list(bias = c(1, -1))))
  after <- flax_variables(model)
  expect_identical(after$first, before$first)
  expect_identical(after$second$params$kernel, before$second$params$kernel)
  expect_identical(after$second$params$bias, array(c(1, -1), 2))
  expect_identical(as.array(get_layer(model, "second")$get_weights()[[1]]), array(c(1, -1), 2))
  wrong <- list(
    third = list(),
    first = list(params = list(bias = 1:2)),
    second = list(params = list(bias = "a"))
  )
  expect_snapshot(error = TRUE, transform = scrub, {
    flax_variables(model) <- wrong[1:2]
    flax_variables(model) <- wrong
    flax_variables(model) <- NULL
  })
  expect_identical(flax_variables(model), after)
})

test_that("JAX arrays are copies that survive training", {
  skip_without_flax()
  model <- keras_model_sequential(4) |>
    layer_flax_module_wrapper(flax_linen()$Dense(3L), name = "dense")
  compile(model, optimizer_sgd(0.1), "mse")
  kernel <- flax_variables(model, as = "jax")$dense$params$kernel
  expect_false(kernel$unsafe_buffer_pointer() == model$weights[[2]]$value$unsafe_buffer_pointer())
  before <- as.array(kernel)
  fit(model, matrix(1, 8, 4), matrix(0, 8, 3), verbose = 0)
  expect_identical(as.array(kernel), before)
  expect_false(identical(flax_variables(model)$dense$params$kernel, before))
})

test_that("no array that R passes or gets shares memory with the weights or changes in training", {
  skip_without_flax()
  jax <- reticulate::import("jax", convert = FALSE)
  nn <- flax_linen()
  x <- matrix(seq(-1, 1, length.out = 32), 8, 4)
  pointers <- function(tree) {
    vapply(
      reticulate::iterate(jax$tree$leaves(tree)),
      \(leaf) reticulate::py_str(leaf$unsafe_buffer_pointer()),
      ""
    )
  }
  held <- function(model) {
    vapply(model$variables, \(v) reticulate::py_str(v$value$unsafe_buffer_pointer()), "")
  }
  bytes <- function(tree) {
    vapply(
      reticulate::iterate(jax$tree$leaves(tree)),
      \(leaf) reticulate::py_str(leaf$tobytes()),
      ""
    )
  }
  check <- function(tree, model) {
    expect_gt(length(pointers(tree)), 0)
    expect_length(intersect(pointers(tree), held(model)), 0)
    before <- bytes(tree)
    fit(model, x, matrix(0, 8, 3), verbose = 0)
    predict(model, x, verbose = 0)
    expect_identical(bytes(tree), before)
    expect_length(intersect(pointers(tree), held(model)), 0)
  }
  model_of <- function(...) {
    model <- keras_model_sequential(4) |> layer_flax_module_wrapper(...)
    compile(model, optimizer_sgd(0.1), "mse")
    model
  }

  given <- nn$Dense(3L)$init(jax$random$key(1L), as_jax(x))
  model <- model_of(nn$Dense(3L), variables = given)
  check(given, model)
  layer <- model$layers[[1]]
  check(flax_variables(model, as = "jax"), model)
  check(layer$flax_variables, model)
  check(layer$to_flax()[[2]], model)
  flax_variables(layer) <- given
  check(given, model)
  layer(x)
  path <- withr::local_tempfile(fileext = ".safetensors")
  flax_write(model, path)
  from_file <- flax_read(path, like = model)
  flax_variables(model) <- from_file
  expect_warning(flax_freeze(model, "**/bias"), "Compile it again")
  compile(model, optimizer_sgd(0.1), "mse")
  check(layer$flax_variables, model)

  nnx <- reticulate::import("flax.nnx")
  module <- nnx$Linear(4L, 3L, rngs = nnx$Rngs(0L))
  model <- model_of(module)
  check(nnx$state(module), model)
  check(nnx$state(model$layers[[1]]$to_flax()), model)
  check(nnx$state(module), model_of(model$layers[[1]]$to_flax()))
})

test_that("an assignment that does not match lists every mismatch by path and sets nothing", {
  skip_without_flax()
  layer <- kinds()
  before <- flax_variables(layer)
  wrong <- list(
    params = list(Dense_0 = list(kernel = matrix(0, 2, 2), bias = array(9, 3), krnel = 1)),
    state = list(most = array(c(-1, 0), 2), count = 1.5)
  )
  expect_snapshot(error = TRUE, transform = scrub, {
    flax_variables(layer) <- wrong
    flax_variables(layer) <- 3
    flax_variables(layer) <- list(params = list(kernel = "a"))
    flax_variables(layer_flax_module_wrapper(module = flax_linen()$Dense(1L), name = "new"))
    flax_variables(3)
    flax_variables(layer, as = "tibble")
    flax_variables(keras_model_sequential(2, name = "plain") |> layer_dense(1))
  })
  expect_identical(flax_variables(layer), before)
  expect_error(flax_variables(layer) <- wrong, class = "kerasflax_error_variables")
})

test_that("one error lists the problems that R finds and those that the module finds", {
  skip_without_flax()
  layer <- layer_flax_module_wrapper(module = flax_linen()$Dense(2L))
  layer(matrix(1, 2, 3))
  before <- flax_variables(layer)
  wrong <- list(params = list(bias = "a", kernel = matrix(1, 2, 2), other = 1))
  message <- conditionMessage(expect_error(
    flax_variables(layer) <- wrong,
    class = "kerasflax_error_variables"
  ))
  for (problem in c(
    "params/bias: expected an array, got the string",
    "params/kernel: expected",
    "params/other: not in the module"
  )) {
    expect_match(message, problem, fixed = TRUE)
  }
  expect_identical(flax_variables(layer), before)
})

test_that("Keras and flax_variables() set the same weights", {
  skip_without_flax()
  model <- keras_model_sequential(2) |>
    layer_flax_module_wrapper(flax_linen()$Dense(1L), name = "dense")
  set_weights(model, list(array(3, 1), matrix(c(1, 2), 2)))
  expect_identical(
    flax_variables(model)$dense$params,
    list(bias = array(3, 1), kernel = matrix(c(1, 2), 2))
  )
  flax_variables(model) <- list(dense = list(params = list(bias = array(4, 1))))
  expect_identical(as.vector(predict(model, matrix(1, 1, 2), verbose = 0)), 7)
})

test_that("values from R are converted to the dtypes of the module", {
  skip_without_flax()
  jnp <- reticulate::import("jax.numpy")
  half <- flax_linen()$Dense(2L, param_dtype = jnp$bfloat16)
  variables <- list(params = list(kernel = matrix(c(1, 2, 3, 4, 5, 6), 3), bias = c(0.1, 7)))
  layer <- layer_flax_module_wrapper(module = half, variables = variables)
  layer(matrix(1, 2, 3))
  expect_identical(unique(flax_parameters(layer)$dtype), "bfloat16")
  expect_identical(flax_variables(layer)$params$kernel, variables$params$kernel)
  too_large <- list(params = list(bias = c(1, 1e300)))
  expect_error(
    flax_variables(layer) <- too_large,
    "params/bias",
    class = "kerasflax_error_variables"
  )
  expect_error(
    flax_variables(layer) <- list(params = 3),
    "has weights below it",
    class = "kerasflax_error_variables"
  )
})

test_that("variables of another level are named in one sentence", {
  skip_without_flax()
  nn <- flax_linen()
  model <- keras_model_sequential(4) |>
    layer_flax_module_wrapper(nn$Dense(3L), name = "net") |>
    layer_dense(3)
  layer <- model$layers[[1]]
  variables <- flax_variables(layer)
  file <- withr::local_tempfile(fileext = ".msgpack")
  flax_write(model, file)
  new_layer <- function(variables) {
    layer_flax_module_wrapper(array(1, c(1, 4)), nn$Dense(3L), variables = variables)
  }
  expect_snapshot(error = TRUE, {
    flax_variables(layer) <- variables$params
    flax_variables(layer) <- flax_variables(model)
    flax_variables(model) <- variables
    flax_variables(model) <- list(net = variables$params)
    new_layer(variables$params)
    new_layer(flax_variables(model))
    new_layer(flax_read(file))
  })
  expect_equal(flax_variables(layer), variables)
})
