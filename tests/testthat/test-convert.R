test_that("as_variables() converts vectors to arrays and keeps scalars and arrays", {
  converted <- as_variables(list(
    params = list(a = c(1, 2), b = 3L, c = matrix(1, 1, 1), d = array(1, 1), e = logical(0))
  ))
  expect_equal(lapply(converted$params, dim), list(a = 2L, b = NULL, c = c(1L, 1L), d = 1L, e = 0L))
  expect_null(as_variables(NULL))
})

test_that("an R function used as a method gets R values and has a name", {
  skip_without_flax()
  seen <- NULL
  f <- as_method(function(module, inputs) seen <<- inputs, "my_method")
  expect_equal(reticulate::py_to_r(reticulate::py_get_attr(f, "__name__")), "my_method")
  f(1L, list(a = 2, b = "c"))
  expect_equal(seen, list(a = 2, b = "c"))
  expect_identical(as_method("encode", "x"), "encode")
  # A primitive is not a closure, which Python could refer to.
  expect_equal(as_method(`-`, "minus")(3, 1), 2)
  expect_null(as_method(NULL, "x"))
})

test_that("a whole double becomes a Python integer as a seed", {
  skip_without_flax()
  seed <- \(x) reticulate::py_str(as_layer_arguments(list(seed = x))$seed)
  expect_equal(seed(3), "3")
  expect_equal(seed(2^32 - 1), "4294967295")
  expect_equal(as_layer_arguments(list(name = "a")), list(name = "a"))
})
