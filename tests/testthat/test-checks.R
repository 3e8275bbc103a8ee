# Every misuse that R can see, with what is said about it.

test_that("a module that is none is refused in R's words", {
  skip_without_flax()
  nn <- flax_linen()
  input <- keras_input(3)
  expect_snapshot(error = TRUE, {
    layer_flax_module_wrapper(input)
    layer_flax_module_wrapper(input, NULL)
    layer_flax_module_wrapper(input, nn$Dense)
    layer_flax_module_wrapper(input, function(x) x)
    layer_flax_module_wrapper(input, layer_dense(units = 3))
    layer_flax_module_wrapper(input, 32)
    layer_flax_module_wrapper(input, "Dense")
    layer_flax_module_wrapper(input, list(nn$Dense(3L)))
  })
})

test_that("an object that no layer can be called on is refused", {
  skip_without_flax()
  nn <- flax_linen()
  dense <- nn$Dense(3L)
  input <- keras_input(3)
  expect_snapshot(error = TRUE, {
    layer_flax_module_wrapper(dense)
    layer_flax_module_wrapper(dense, input)
    layer_flax_module_wrapper("text", dense)
    layer_flax_module_wrapper(1:3, dense)
    layer_flax_module_wrapper(mtcars, dense)
    layer_flax_module_wrapper(keras_input, dense)
    layer_flax_module_wrapper(layer_dense(units = 3), dense)
    layer_flax_module_wrapper(reticulate::py_eval("len", convert = FALSE), dense)
    layer_flax_module_wrapper(list(), dense)
    layer_flax_module_wrapper(reticulate::dict(), dense)
    layer_flax_module_wrapper(reticulate::np_array("text"), dense)
    layer_flax_module_wrapper(matrix(c(1L, NA)), dense)
    layer_flax_module_wrapper(list(input, 3), dense)
    layer_flax_module_wrapper(list(a = input, input), dense)
    layer_flax_module_wrapper(list(a = input, b = list(NULL)), dense)
  })
})

test_that("a method that is none is refused", {
  skip_without_flax()
  nn <- flax_linen()
  input <- keras_input(3)
  dense <- nn$Dense(3L)
  two_inputs <- function(module, x, y) module(x)
  expect_snapshot(error = TRUE, transform = scrub, {
    layer_flax_module_wrapper(input, dense, method = 3)
    layer_flax_module_wrapper(input, dense, method = c("a", "b"))
    layer_flax_module_wrapper(input, dense, method = nn$Dense)
    layer_flax_module_wrapper(input, dense, method = nn$Dense(3L))
    layer_flax_module_wrapper(input, dense, method = "encode")
    layer_flax_module_wrapper(input, dense, method = function() 1)
    layer_flax_module_wrapper(input, dense, method = function(module) 1)
    layer_flax_module_wrapper(input, dense, method = two_inputs)
    layer_flax_module_wrapper(input, dense, method = nn$Embed(3L, 3L)$attend)
  })
})

test_that("variables that do not fit are refused, with every place and both shapes", {
  skip_without_flax()
  nn <- flax_linen()
  input <- keras_input(3)
  dense <- nn$Dense(2L)
  expect_snapshot(error = TRUE, transform = scrub, {
    layer_flax_module_wrapper(input, dense, variables = 3)
    layer_flax_module_wrapper(input, dense, variables = list(1, 2))
    layer_flax_module_wrapper(input, dense, variables = list(kernel = matrix(1, 3, 2)))
    layer_flax_module_wrapper(
      input,
      dense,
      variables = list(params = list(kernel = matrix(1, 2, 3), scale = c(1, 2)))
    )
    layer_flax_module_wrapper(
      input,
      dense,
      variables = list(params = list(kernel = matrix("a", 3, 2), bias = c(0L, NA), `{x}` = mtcars))
    )
    layer_flax_module_wrapper(input, dense, variables = list(params = list(kernel = 1, kernel = 2)))
  })
})

test_that("an argument that no layer takes is refused", {
  skip_without_flax()
  nn <- flax_linen()
  input <- keras_input(3)
  dense <- nn$Dense(2L)
  expect_snapshot(error = TRUE, transform = scrub, {
    layer_flax_module_wrapper(input, dense, units = 3)
    layer_flax_module_wrapper(input, dense, NULL, NULL, "name")
    layer_flax_module_wrapper(input, dense, seed = 3.5)
    layer_flax_module_wrapper(input, dense, seed = "a")
    layer_flax_module_wrapper(input, dense, seed = Inf)
    layer_flax_module_wrapper(input, dense, seed = TRUE)
    layer_flax_module_wrapper(input, dense, trainable = NA)
    layer_flax_module_wrapper(input, dense, name = "a/{b}")
    layer_flax_module_wrapper(input, dense, dtype = "float33")
    layer_flax_module_wrapper(input, dense, dtype = "int32")
    layer_flax_module_wrapper(input, dense, regularizers = "l2")
    layer_flax_module_wrapper(
      input,
      dense,
      constraints = list("params/krnel" = constraint_nonneg())
    )
  })
})

test_that("each cause has its class", {
  skip_without_flax()
  nn <- flax_linen()
  input <- keras_input(3)
  dense <- nn$Dense(2L)
  expect_error(layer_flax_module_wrapper(input), class = "kerasflax_error_module")
  expect_error(layer_flax_module_wrapper(dense), class = "kerasflax_error_object")
  expect_error(
    layer_flax_module_wrapper(input, dense, method = 1),
    class = "kerasflax_error_method"
  )
  expect_error(
    layer_flax_module_wrapper(input, dense, method = "no"),
    class = "kerasflax_error_method"
  )
  expect_error(
    layer_flax_module_wrapper(input, dense, variables = 1),
    class = "kerasflax_error_variables"
  )
  expect_error(
    layer_flax_module_wrapper(input, dense, variables = list(a = 1)),
    class = "kerasflax_error_variables"
  )
  expect_error(layer_flax_module_wrapper(input, dense, no = 1), class = "kerasflax_error_argument")
  for (cause in list(
    quote(layer_flax_module_wrapper(input)),
    quote(layer_flax_module_wrapper(input, dense, no = 1))
  )) {
    expect_error(eval(cause), class = "kerasflax_error")
  }
})
