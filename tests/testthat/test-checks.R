# Every misuse that R detects, with its message.

test_that("a value that is not a Flax module is an error", {
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

test_that("an object that a layer cannot be called on is an error", {
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

test_that("a value that is not a method is an error", {
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

test_that("a layer in place of its variables is an error that names the function to use", {
  skip_without_flax()
  nn <- flax_linen()
  layer <- layer_flax_module_wrapper(module = nn$Dense(2L))
  expect_error(
    layer_flax_module_wrapper(keras_input(3), nn$Dense(2L), variables = layer),
    "flax_variables(layer)",
    fixed = TRUE,
    class = "kerasflax_error_variables"
  )
})

test_that("an error about variables lists every mismatch with both shapes", {
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

test_that("an argument that the layer does not accept is an error", {
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

test_that("each cause has its own condition class", {
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

test_that("text that is not valid UTF-8 is an error in every argument of the layer", {
  skip_without_flax()
  nn <- flax_linen()
  input <- keras_input(3)
  dense <- nn$Dense(2L)
  lost <- latin_word("bytes")
  invalid <- latin_word("unknown")
  expect_snapshot(error = TRUE, {
    layer_flax_module_wrapper(input, dense, name = invalid)
    layer_flax_module_wrapper(input, dense, name = lost)
    layer_flax_module_wrapper(input, dense, method = invalid)
    layer_flax_module_wrapper(
      input,
      dense,
      regularizers = rlang::set_names(list("l2", "l2"), c(invalid, "**"))
    )
    layer_flax_module_wrapper(input, dense, constraints = rlang::set_names(list(1), lost))
    layer_flax_module_wrapper(rlang::set_names(list(input), invalid), dense)
  })
  expect_error(
    layer_flax_module_wrapper(input, dense, name = invalid),
    "`name` must be valid UTF-8.*<e9>",
    class = "kerasflax_error_argument"
  )
  expect_error(
    layer_flax_module_wrapper(input, dense, method = invalid),
    "`method` must be valid UTF-8",
    class = "kerasflax_error_method"
  )
})

test_that("text with a declared encoding arrives in Python as the same characters", {
  skip_without_flax()
  nn <- flax_linen()
  latin <- latin_word("latin1")
  layer <- layer_flax_module_wrapper(module = nn$Dense(2L), name = latin)
  expect_identical(layer$name, "caf\u00e9")
})
