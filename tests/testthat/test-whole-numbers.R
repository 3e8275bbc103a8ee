shape_of <- function(x) as.integer(unlist(x$shape))

test_that("modules made with whole doubles hold integers and are used by hand", {
  skip_without_flax()
  nn <- flax_linen()
  jnp <- reticulate::import("jax.numpy")
  jax <- reticulate::import("jax")
  expect_identical(nn$Conv(4, c(3, 3))$kernel_size, list(3L, 3L))
  dense <- nn$Dense(3)
  expect_identical(dense$features, 3L)
  x <- jnp$ones(c(2, 4))
  variables <- dense$init(jax$random$key(1), x)
  expected <- as.array(x) %*% as.array(variables$params$kernel)
  expect_equal(as.array(dense$apply(variables, x)), expected, tolerance = 1e-6)
  layer <- layer_flax_module_wrapper(module = nn$Dense(3))
  outputs <- as.array(layer(matrix(1, 2, 4)))
  returned <- layer$to_flax()
  expect_equal(as.array(returned[[1]]$apply(returned[[2]], x)), outputs, tolerance = 1e-6)
  expect_identical(nn$Dense(2.5)$features, 2.5)
})

test_that("every recurrent cell accepts whole doubles inside nn$RNN()", {
  skip_without_flax()
  nn <- flax_linen()
  x <- array(seq(-1, 1, length.out = 30), c(2, 5, 3))
  cells <- c("LSTMCell", "OptimizedLSTMCell", "SimpleCell", "GRUCell", "MGUCell")
  for (cell in cells) {
    outputs <- lapply(list(8, 8L), \(size) {
      module <- nn$RNN(do.call(`$`, list(nn, cell))(size))
      as.array(layer_flax_module_wrapper(x, module, seed = 1))
    })
    expect_identical(dim(outputs[[1]]), c(2L, 5L, 8L))
    expect_equal(outputs[[1]], outputs[[2]])
  }
  images <- array(1, c(2, 3, 6, 6, 1))
  conv <- layer_flax_module_wrapper(images, nn$RNN(nn$ConvLSTMCell(4, c(3, 3))))
  expect_identical(dim(as.array(conv)), c(2L, 3L, 6L, 6L, 4L))
  nnx <- flax_nnx()
  lstm <- nnx$RNN(nnx$LSTMCell(3, 8, rngs = nnx$Rngs(0)))
  expect_identical(dim(as.array(layer_flax_module_wrapper(x, lstm))), c(2L, 5L, 8L))
})

test_that("functions of Flax and JAX accept whole doubles as sizes, shapes, axes and seeds", {
  skip_without_flax()
  nn <- flax_linen()
  nnx <- flax_nnx()
  jnp <- reticulate::import("jax.numpy")
  jax <- reticulate::import("jax")
  functools <- reticulate::import("functools")
  images <- jnp$ones(c(1, 4, 4, 1))
  expect_identical(shape_of(nn$max_pool(images, c(2, 2), strides = c(2, 2))), c(1L, 2L, 2L, 1L))
  expect_identical(shape_of(nn$avg_pool(images, c(2L, 2L))), c(1L, 3L, 3L, 1L))
  for (two in list(list(2, 2), list(2L, 2L))) {
    expect_identical(shape_of(nnx$avg_pool(images, two, strides = two)), c(1L, 2L, 2L, 1L))
  }
  matrix <- jnp$ones(c(3, 4))
  expect_identical(shape_of(jax$lax$dynamic_slice(matrix, c(0, 0), c(2, 2))), c(2L, 2L))
  expect_identical(shape_of(jax$lax$dynamic_slice_in_dim(matrix, 1, 2, axis = 1)), 3:2)
  expect_identical(shape_of(jax$lax$reshape(matrix, c(4, 3))), 4:3)
  expect_identical(as.array(jnp$eye(3, k = 1)), rbind(c(0, 1, 0), c(0, 0, 1), 0))
  layers <- nnx$vmap(\(rngs) nnx$Linear(3, 4, rngs = rngs))(nnx$Rngs(0)$fork(split = 5))
  expect_identical(shape_of(layers$kernel$get_value()), c(5L, 3L, 4L))
  expect_identical(shape_of(images$reshape(c(4, 4))), c(4L, 4L))
  expect_identical(shape_of(images$reshape(2, 8)), c(2L, 8L))
  expect_identical(shape_of(images$mean(axis = c(1, 2))), c(1L, 1L))
  expect_identical(shape_of(jax$random$normal(jax$random$key(3), c(2, 3))), 2:3)
  same <- jax$random$key_data(nnx$Rngs(params = 0)$params())
  expect_identical(as.array(jax$random$key_data(nnx$Rngs(params = 0L)$params())), as.array(same))
  expect_identical(functools$partial(nn$Dense, features = 5)()$features, 5L)
  expect_identical(functools$partial(nn$Dense, use_bias = FALSE)(5)$features, 5L)
  batched <- nn$vmap(
    nn$Dense,
    variable_axes = list(params = 0),
    split_rngs = list(params = TRUE),
    in_axes = 0,
    axis_size = 3
  )
  params <- batched(4)$init(jax$random$key(0), jnp$ones(c(3, 2)))$params
  expect_identical(shape_of(params$kernel), c(3L, 2L, 4L))
  # Numbers that may be floats stay floats.
  expect_identical(nn$Dropout(1)$rate, 1)
  expect_match(reticulate::py_str(jnp$full(c(2, 2), 1)$dtype), "float32")
})

test_that("parameters and variables of a module have shapes written as doubles", {
  skip_without_flax()
  nn <- flax_linen()
  jnp <- reticulate::import("jax.numpy")
  make <- flax_module("Net", call = function(self, inputs) {
    weight <- self$param("weight", nn$initializers$ones, c(4, 2))
    bias <- self$param("bias", function(key, shape) jnp$full(shape, 0.5), c(1, 2))
    scale <- self$param("scale", function(key, value) jnp$full(c(2), value), 2)
    self$variable("state", "count", jnp$zeros, c(2, 2))
    jnp$matmul(inputs, weight) * scale + bias
  })
  layer <- layer_flax_module_wrapper(module = make())
  x <- matrix(1:8 + 0, 2)
  expect_equal(as.array(layer(x)), x %*% matrix(1, 4, 2) * 2 + 0.5)
  expect_identical(dim(flax_variables(layer)$state$count), c(2L, 2L))
  expect_type(flax_variables(layer)$params$scale, "double")
})

test_that("classes from Python and from `%py_class%` accept whole doubles in integer fields", {
  skip_without_flax()
  nn <- flax_linen()
  Net(nn$Module) %py_class% {
    `__annotations__` <- reticulate::dict(units = reticulate::import_builtins()$int)
    units <- 6
    `__call__` <- nn$compact(\(self, inputs) (nn$Dense(self$units))(inputs))
  }
  expect_identical(Net(units = 32)$units, 32L)
  expect_identical(dim(as.array(layer_flax_module_wrapper(matrix(1, 2, 3), Net()))), c(2L, 6L))
})

test_that("functions whose arguments have the names of kerasflax's own are unchanged", {
  skip_without_flax()
  jax <- reticulate::import("jax")
  expect_equal(jax$tree$map(function(x, y) x + y, list(a = 1, b = 2), list(a = 3, b = 4)), list(
    a = 4,
    b = 6
  ))
})
