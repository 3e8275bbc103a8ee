test_that("an R condition signaled in a module keeps its class, call and fields", {
  skip_without_flax()
  nn <- flax_linen()
  inner <- function() {
    rlang::abort("my {condition} with {{braces}}", class = "my_class", extra = list(3))
  }
  Fails(nn$Module) %py_class% {
    `__call__` <- nn$compact(\(self, inputs, training = FALSE) inner())
  }
  condition <- expect_error(layer_flax_module_wrapper(keras_input(3), Fails()), class = "my_class")
  expect_equal(conditionMessage(condition), "my {condition} with {{braces}}")
  expect_equal(condition$extra, list(3))
  expect_equal(conditionCall(condition), quote(inner()))
})

test_that("an R condition about sizes is not replaced, and none arrives from other sizes", {
  skip_without_flax()
  nn <- flax_linen()
  strict <- flax_module("Strict", call = function(self, inputs) {
    if (ncol(inputs) != 4) rlang::abort("I need 4 columns.", class = "my_error", columns = 4)
    (nn$Dense(2))(inputs)
  })
  expect_error(layer_flax_module_wrapper(matrix(1, 6, 3), strict()), class = "my_error")
  layer <- layer_flax_module_wrapper(module = strict())
  layer(matrix(1, 6, 4))
  expect_error(layer(matrix(1, 6, 3)), "I need 4 columns.", fixed = TRUE)
  # While kerasflax looks for the size that works, the module runs on other sizes than the call's.
  is_built <- FALSE
  picky <- flax_module("Picky", call = function(self, inputs) {
    if (ncol(inputs) == 4 && is_built) rlang::abort("From another size.", class = "my_error")
    (nn$Dense(2))(inputs)
  })
  layer <- layer_flax_module_wrapper(module = picky())
  layer(matrix(1, 6, 4))
  is_built <- TRUE
  error <- tryCatch(layer(matrix(1, 5, 3)), error = identity)
  expect_no_match(conditionMessage(error), "From another size")
})

test_that("a plain stop() in a module arrives as a simpleError", {
  skip_without_flax()
  nn <- flax_linen()
  fails <- function(module, inputs) stop("plain {stop}")
  condition <- expect_error(
    layer_flax_module_wrapper(keras_input(3), nn$Dense(2L), method = fails),
    class = "simpleError"
  )
  expect_equal(conditionMessage(condition), "plain {stop}")
})

test_that("the Python error from fit() has the text and class of the R condition", {
  skip_without_flax()
  nn <- flax_linen()
  Fails(nn$Module) %py_class% {
    `__call__` <- nn$compact(\(self, inputs, training = FALSE) {
      if (training) {
        rlang::abort("only {in} training", class = "my_class")
      }
      (nn$Dense(3L))(inputs)
    })
  }
  input <- keras_input(3)
  model <- keras_model(input, layer_flax_module_wrapper(input, Fails()))
  compile(model, "sgd", "mse")
  condition <- expect_error(
    fit(model, targets(), targets(), verbose = 0),
    "only {in} training",
    fixed = TRUE
  )
  expect_true("my_class" %in% condition$r_class)
})

test_that("an exception from the module's own code is unchanged", {
  skip_without_flax()
  nn <- flax_linen()
  expect_error(
    layer_flax_module_wrapper(keras_input(3), nn$Embed(3L, 3L)),
    "Input type must be an integer",
    class = "python.builtin.ValueError"
  )
})

test_that("an error from the core keeps its full text", {
  skip_without_flax()
  nn <- flax_linen()
  Braces(nn$Module) %py_class% {
    `__call__` <- nn$compact(\(self, inputs) {
      self$param("a {b} {{c}} {.cls d}", nn$initializers$zeros, inputs$shape[1])
    })
  }
  condition <- expect_error(
    layer_flax_module_wrapper(array(1, c(1, 3)), Braces(), variables = list(params = list(x = 1))),
    class = "kerasflax_error_variables"
  )
  expect_match(conditionMessage(condition), "params/a {b} {{c}} {.cls d}: missing", fixed = TRUE)
  expect_null(condition$parent)
})

test_that("an exception that caused an error of the core is the error's parent", {
  skip_without_flax()
  condition <- expect_error(
    flax_read("w.msgpack", rename = c("(" = "x")),
    class = "kerasflax_error_argument"
  )
  expect_s3_class(condition$parent$exception, "python.builtin.Exception")
  # `re.error`, which Python 3.13 calls `re.PatternError`.
  expect_match(conditionMessage(condition$parent), "^re[.].*[eE]rror in Python")
})

test_that("the help page documents the cause of every Python exception", {
  skip_without_flax()
  causes <- vapply(
    reticulate::import("kerasflax")$KerasFlaxError$`__subclasses__`(),
    \(class) class$cause,
    ""
  )
  rd <- tools::Rd_db("kerasflax")[["layer_flax_module_wrapper.Rd"]]
  text <- paste(
    capture.output(tools::Rd2txt(rd, options = list(underline_titles = FALSE))),
    collapse = " "
  )
  for (cause in causes) {
    expect_match(text, paste0("'", cause, "'"), fixed = TRUE)
  }
})

test_that("an error from `if` on a tensor names the replacement, wherever the layer is called", {
  skip_without_flax()
  layer <- layer_flax_module_wrapper(module = flax_linen()$Dense(1L), method = \(module, x) {
    if (x > 0) x else -x
  })
  expect_error(layer(array(1, c(2, 3))), "op_where\\(\\)")
  model <- keras_model_sequential(layers = list(layer)) |> compile("sgd", "mse")
  expect_error(fit(model, array(1, c(2, 3)), array(1, c(2, 3)), verbose = 0), "op_where\\(\\)")
  expect_error(
    layer_flax_module_wrapper(array(1, c(2, 3)), flax_linen()$Dense(1L), \(module, x) if (x > 0) x),
    "op_cond"
  )
})

test_that("messages write Python's functions and values as R code", {
  skip_without_flax()
  nn <- flax_linen()
  layer <- layer_flax_module_wrapper(module = nn$Dense(2))
  expect_error(layer$enable_lora(2L), "`flax$nnx$LoRA`", fixed = TRUE)
  expect_error(
    layer_bidirectional(keras_input(c(3, 4)), layer),
    "`layer_bidirectional\\(\\)` cannot reverse.*`flax[$]linen[$]Bidirectional`"
  )
  expect_error(
    layer_flax_module_wrapper(matrix(1, 2, 3), nn$Dense(2), method = \(module, inputs) {
      random_dropout(inputs, 0.5)
    }),
    "Draw random numbers with `jax$random`",
    fixed = TRUE
  )
  expect_error(
    layer_flax_module_wrapper(matrix(1, 2, 3), nn$Dense(2), method = \(module, inputs) "text"),
    "lists or named lists",
    fixed = TRUE
  )
})

test_that("R has a word for every entry of Python's table of words", {
  skip_without_flax()
  words <- reticulate::import("kerasflax._host")$WORDS
  expect_setequal(names(kerasflax:::core_words), reticulate::iterate(words$keys()))
})

test_that("a name that a method does not know comes with advice", {
  skip_without_flax()
  nn <- flax_linen()
  without_training <- flax_module("WithoutTraining",
    call = function(self, inputs) (nn$Dropout(0.5))(inputs, deterministic = !training)
  )
  without_self <- flax_module("WithoutSelf",
    width = 2L,
    call = function(self, inputs) (nn$Dense(width))(inputs)
  )
  input <- keras_input(3)
  expect_snapshot(error = TRUE, {
    layer_flax_module_wrapper(input, without_training())
    layer_flax_module_wrapper(input, without_self())
  })
})

test_that("one number in place of one for each axis comes with advice", {
  skip_without_flax()
  nn <- flax_linen()
  pool <- flax_module("Pool", call = function(self, inputs) nn$max_pool(inputs, 2))
  expect_error(
    layer_flax_module_wrapper(keras_input(c(4, 4, 1)), pool()),
    "has no len.*`c\\(2, 2\\)` instead of `2`"
  )
})

test_that("a condition without a message is not an error", {
  expect_null(advice_on_names(list()))
  expect_null(advice_on_names(list(message = 1)))
})
