test_that("r_formals() finds the arguments of an R function behind Flax's wrappers", {
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

test_that("r_formals() is NULL for Python functions and plain %py_class% methods", {
  skip_without_flax()
  expect_null(r_formals(reticulate::py_eval("lambda x: x", convert = FALSE)))
  expect_null(r_formals(reticulate::import_builtins()$len))
  Plain %py_class% {
    method <- function(self, inputs) inputs
  }
  expect_null(r_formals(reticulate::py_get_attr(Plain, "method")))
})
