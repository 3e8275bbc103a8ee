# Calls an R function on a tensor inside a module, with an R array as input and output.
in_module <- function(f, x = array(c(-1.5, 0.5, 2, 3, -4, 5), c(2, 3))) {
  as.array(layer_flax_module_wrapper(x, flax_linen()$Dense(1L), method = function(module, inputs) {
    f(inputs)
  }))
}

test_that("R's generics give the same results for tensors as for arrays", {
  skip_without_flax()
  x <- array(c(-1.5, 0.5, 2, 3, -4, 5), c(2, 3))
  for (f in c(mean, sum, prod, max, min, exp, abs, tanh, ceiling, floor, atan, sign)) {
    expect_equal(as.vector(in_module(f, x)), as.vector(f(x)), tolerance = 1e-6)
  }
  expect_equal(in_module(sqrt, abs(x)), sqrt(abs(x)), tolerance = 1e-6)
  expect_equal(as.vector(in_module(\(x) sum(x, 2 * x))), sum(x, 2 * x), tolerance = 1e-6)
  expect_equal(in_module(\(x) op_cast(is.na(x), "int32")), array(0L, c(2, 3)))
  expect_equal(in_module(rev, array(1:3)), array(3:1))
})

test_that("logic, length and transposition follow R, not Python", {
  skip_without_flax()
  x <- array(c(1L, 2L, 0L, 4L), 4)
  logic <- function(f) as.logical(in_module(\(x) op_cast(f(x), "int32"), x))
  expect_equal(logic(\(x) x & 2L), x & 2L, ignore_attr = TRUE)
  expect_equal(logic(\(x) x | 0L), x | 0L, ignore_attr = TRUE)
  expect_equal(logic(\(x) !x), !x, ignore_attr = TRUE)
  expect_equal(logic(\(x) xor(x, 1L)), xor(x, 1L), ignore_attr = TRUE)
  m <- matrix(1:6 + 0, 2)
  expect_equal(as.vector(in_module(\(x) sum(x) / length(x), m)), mean(m))
  expect_equal(in_module(t, m), t(m))
  a <- array(1:24 + 0, 2:4)
  expect_equal(in_module(\(x) aperm(x, c(3, 1, 2)), a), aperm(a, c(3, 1, 2)))
  expect_equal(in_module(\(x) if (is.numeric(x)) x + 1 else x, m), m + 1)
})

test_that("dim(), nrow() and ncol() are sizes, or symbols if sizes are unknown", {
  skip_without_flax()
  nn <- flax_linen()
  seen <- list()
  f <- function(module, inputs) {
    seen[[length(seen) + 1]] <<- list(length(dim(inputs)), ncol(inputs), class(nrow(inputs)))
    op_reshape(inputs, c(nrow(inputs), -1L))
  }
  output <- layer_flax_module_wrapper(keras_input(c(4, 3)), nn$Dense(1L), method = f)
  expect_equal(output$shape, list(NULL, 12L))
  expect_equal(seen[[1]][[1]], 3)
  output <- layer_flax_module_wrapper(array(1, c(2, 4, 3)), nn$Dense(1L), method = f)
  expect_equal(dim(as.array(output)), c(2, 12))
  expect_equal(seen[[length(seen)]], list(3L, 4L, "integer"))
})

test_that("an unavailable generic stops and names its replacement", {
  skip_without_flax()
  x <- matrix(1, 2, 3)
  expect_snapshot(error = TRUE, transform = scrub, {
    in_module(\(x) x[, 1])
    in_module(\(x) x[1, 1:2])
    in_module(\(x) {
      x[1, ] <- 0
      x
    })
    in_module(rev)
    in_module(range)
    in_module(\(x) sum(x, na.rm = TRUE))
    in_module(\(x) mean(x, trim = 0.1))
    in_module(cumsum)
    in_module(\(x) x[[1]])
    in_module(\(x) rep(x, 2))
    in_module(\(x) diff(x))
    in_module(\(x) scale(x))
    in_module(\(x) cbind(x, x))
    in_module(\(x) rbind(x, x))
    in_module(\(x) t(op_expand_dims(x, 1)))
    in_module(\(x) ifelse(x > 0, x, 0))
    in_module(\(x) as.numeric(x))
    in_module(\(x) if (x > 0) x else -x)
  })
  expect_error(in_module(\(x) x[, 1]), class = "kerasflax_error_tracer")
})

test_that("outside a module, `[` keeps reticulate's meaning", {
  skip_without_flax()
  jax <- reticulate::import("jax")
  first <- jax$jit(reticulate::r_to_py(\(x) x[0L], convert = TRUE))
  expect_equal(as.array(first(as_jax(array(c(5, 6))))), 5, ignore_attr = TRUE)
})

test_that("length() uses the sizes of the call if they were unknown when the layer was built", {
  skip_without_flax()
  f <- function(module, inputs) inputs / length(inputs)
  input <- keras_input(4)
  model <- keras_model(input, layer_flax_module_wrapper(input, flax_linen()$Dense(1L), method = f))
  expect_equal(predict(model, matrix(1, 2, 4), verbose = 0), matrix(1 / 8, 2, 4), tolerance = 1e-6)
  expect_equal(predict(model, matrix(1, 3, 4), verbose = 0), matrix(1 / 12, 3, 4), tolerance = 1e-6)
})
