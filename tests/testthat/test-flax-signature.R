test_that("the formals of an R function are seen through what Flax wraps around it", {
  skip_without_flax()
  nn <- flax_linen()
  inspect <- reticulate::import("inspect")
  f <- nn$compact(function(self, inputs, training = FALSE, ...) inputs)
  formals <- r_formals(inspect$unwrap(f))
  expect_equal(
    reticulate::py_to_r(formals),
    list(self = FALSE, inputs = FALSE, training = TRUE, ... = FALSE)
  )
})

test_that("Python functions and plain methods of a %py_class% speak for themselves", {
  skip_without_flax()
  expect_null(r_formals(reticulate::py_eval("lambda x: x", convert = FALSE)))
  expect_null(r_formals(reticulate::import_builtins()$len))
  Plain %py_class% {
    method <- function(self, inputs) inputs
  }
  expect_null(r_formals(reticulate::py_get_attr(Plain, "method")))
})
