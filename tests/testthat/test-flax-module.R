mlp <- function() {
  nn <- flax_linen()
  flax_module(
    "MLP",
    units = 4L,
    rate = 0.5,
    activation = NULL,
    classes = flax_field("integer"),
    call = function(self, inputs, training = FALSE) {
      x <- (nn$Dense(self$units))(inputs)
      if (!is.null(self$activation)) {
        x <- self$activation(x)
      }
      x <- (nn$Dropout(self$rate))(x, deterministic = !training)
      (nn$Dense(self$classes))(x)
    }
  )
}

test_that("a module defined in R is a Flax module with the same numbers", {
  skip_without_flax()
  nn <- flax_linen()
  make <- mlp()
  module <- make(units = 5, classes = 2, activation = nn$relu)
  expect_s3_class(module, "flax.linen.module.Module")
  expect_identical(module$units, 5L)
  x <- matrix(seq(-1, 1, length.out = 12), 4)
  key <- reticulate::import("jax")$random$key(1L)
  other <- nn$Sequential(list(nn$Dense(5L), nn$relu, nn$Dense(2L)))
  variables <- module$init(key, as_jax(x))
  params <- variables$params
  expect_identical(names(params), c("Dense_0", "Dense_1"))
  expected <- other$apply(
    list(params = list(layers_0 = params$Dense_0, layers_2 = params$Dense_1)),
    as_jax(x)
  )
  layer <- layer_flax_module_wrapper(module = module, variables = variables)
  expect_equal(as.array(layer(x)), as.array(expected))
})

test_that("the constructor has the fields as arguments and enforces their types", {
  skip_without_flax()
  make <- mlp()
  expect_identical(names(formals(make)), c("units", "rate", "activation", "classes", "..."))
  expect_identical(formals(make)$units, 4L)
  expect_error(make(classes = 2, widths = 3), "unused argument")
  expect_error(make(units = 3), "classes", class = "kerasflax_error_field")
  expect_error(make(units = 3.5, classes = 2), "units", class = "kerasflax_error_field")
  expect_error(make(units = 3e9, classes = 2), "units", class = "kerasflax_error_field")
  expect_error(make(rate = "a", classes = 2), "rate", class = "kerasflax_error_field")
  expect_error(
    make(activation = NA, classes = 2),
    "activation. must not be NA",
    class = "kerasflax_error_field"
  )
  expect_error(
    make(classes = NA_integer_),
    "classes. must not be NA",
    class = "kerasflax_error_field"
  )
  expect_identical(make(rate = NA_real_, classes = 2)$rate, NA_real_)
  expect_identical(make(rate = 1L, classes = 2)$rate, 1)
  expect_snapshot(make)
})

test_that("a module defined in R receives `training` and keeps its state", {
  skip_without_flax()
  model <- keras_model_sequential(3) |> layer_flax_module_wrapper(mlp()(classes = 2))
  x <- matrix(1, 64, 3)
  expect_gt(length(unique(c(as.array(model(x, training = TRUE))))), 2)
  expect_length(unique(c(as.array(model(x)))), 2)
})

test_that("setup and other functions become methods, and modules nest", {
  skip_without_flax()
  nn <- flax_linen()
  coder <- flax_module(
    "Coder",
    sizes = c(3L, 7L),
    part = NULL,
    options = list(a = 1),
    setup = function(self) {
      self$encoder <- nn$Dense(self$sizes[[1]])
      self$decoder <- self$part
    },
    encode = function(self, inputs) self$encoder(inputs),
    call = function(self, inputs) self$decoder(self$encode(inputs))
  )
  module <- coder(part = coder(sizes = c(5, 4), part = nn$Dense(2L)))
  layer <- layer_flax_module_wrapper(module = module)
  expect_identical(dim(as.array(layer(matrix(1, 2, 3)))), c(2L, 2L))
  expect_identical(names(flax_variables(layer)$params), c("encoder", "part"))
  encoder <- layer_flax_module_wrapper(module = module, method = "encode")
  expect_identical(dim(as.array(encoder(matrix(1, 2, 3)))), c(2L, 3L))
  expect_snapshot(coder)
})

test_that("a module can have no fields, and a field can have any name", {
  skip_without_flax()
  nn <- flax_linen()
  plain <- flax_module("Plain", call = function(self, inputs) (nn$Dense(2L))(inputs))
  expect_identical(
    dim(as.array(layer_flax_module_wrapper(module = plain())(matrix(1, 2, 3)))),
    c(2L, 2L)
  )
  expect_snapshot(plain)
  short <- flax_module("Short", n = 2L, call = function(self, inputs) (nn$Dense(self$n))(inputs))
  expect_identical(short(n = 3)$n, 3L)
})

test_that("wrong names, fields and methods are errors", {
  skip_without_flax()
  call <- function(self, inputs) inputs
  expect_snapshot(error = TRUE, {
    flax_module(1, call = call)
    flax_module("A B", call = call)
    flax_module("A")
    flax_module("A", call = function(inputs) inputs)
    flax_module("A", 3, call = call)
    flax_module("A", x = 1, x = 2, call = call)
    flax_module("A", parent = 1, call = call)
    flax_module("A", name = 1, call = call)
    flax_module("A", lambda = 1, call = call)
    flax_module("A", apply = 1, call = call)
    flax_module("A", x = NA, call = call)
    flax_module("A", setup = function() 1, call = call)
    flax_field("number")
  })
})

test_that("a session that has run the definition loads a saved model", {
  skip_without_flax()
  path <- withr::local_tempfile(fileext = ".keras")
  define <- "
    library(kerasflax)
    nn <- reticulate::import('flax.linen')
    net <- flax_module('Net', units = 3L, sizes = c(1L, 2L),
      call = function(self, inputs) (nn$Dense(self$units))(inputs))
    x <- matrix(seq(-1, 1, length.out = 12), 4)"
  old <- result_of(c(
    define,
    sprintf(
      "model <- keras_model_sequential(3) |>
       layer_flax_module_wrapper(net(units = 5, sizes = c(3, 4)))
     save_model(model, '%s')
     result <- predict(model, x, verbose = 0)",
      path
    )
  ))
  expect_identical(dim(old), c(4L, 5L))
  expect_identical(
    result_of(c(define, sprintf("result <- predict(load_model('%s'), x, verbose = 0)", path))),
    old
  )
})

test_that("a constructor is a class in Python, not a module", {
  skip_without_flax()
  nn <- flax_linen()
  counts <- flax_module("Counts", units = 3L, call = function(self, inputs) {
    (nn$Dense(self$units))(inputs)
  })
  repeated <- flax_module("Repeated", part = flax_field(), call = function(self, inputs) {
    (self$part(2L))(inputs)
  })
  layer <- layer_flax_module_wrapper(module = repeated(part = counts))
  expect_identical(dim(as.array(layer(matrix(1, 4, 3)))), c(4L, 2L))
  expect_identical(layer$module$part$`__qualname__`, "Counts")
  expect_snapshot(error = TRUE, {
    layer_flax_module_wrapper(module = counts)
    layer_flax_module_wrapper(module = nn$Dense(1L), method = counts)
  })
  # Looking up the constructor as a method does not rename the class.
  assign("other_name", counts, envir = globalenv())
  withr::defer(rm("other_name", envir = globalenv()))
  expect_identical(
    reticulate::r_to_py(kerasflax:::r_method_of_name("other_name"))$`__name__`,
    "Counts"
  )
})

nnx_mlp <- function() {
  nnx <- flax_nnx()
  flax_module(
    "MLP",
    units = 4L,
    rate = 0.5,
    outputs = flax_field("integer"),
    api = "nnx",
    setup = function(self, rngs) {
      self$hidden <- nnx$Linear(3L, self$units, rngs = rngs)
      self$dropout <- nnx$Dropout(self$rate, rngs = rngs)
      self$out <- nnx$Linear(self$units, self$outputs, rngs = rngs)
    },
    call = function(self, inputs) self$out(self$dropout(nnx$relu(self$hidden(inputs))))
  )
}

test_that("the layer creates an NNX module, and `rngs` creates it at once", {
  skip_without_flax()
  nnx <- flax_nnx()
  mlp <- nnx_mlp()
  expect_named(formals(mlp), c("units", "rate", "outputs", "rngs", "..."))
  module <- mlp(units = 5, outputs = 2, rngs = nnx$Rngs(3L))
  expect_s3_class(module, "flax.nnx.module.Module")
  expect_identical(module$units, 5L)
  lazy <- layer_flax_module_wrapper(module = mlp(units = 5, outputs = 2), seed = 3)
  eager <- layer_flax_module_wrapper(module = module)
  x <- matrix(seq(-1, 1, length.out = 12), 4)
  expect_equal(as.array(lazy(x)), as.array(eager(x)), tolerance = 1e-6)
  expect_equal(
    as.array(lazy(x, training = TRUE)),
    as.array(eager(x, training = TRUE)),
    tolerance = 1e-6
  )
  expect_false(isTRUE(all.equal(as.array(lazy(x, training = TRUE)), as.array(lazy(x)))))
  expect_snapshot({
    mlp
    mlp(outputs = 2)
  })
  expect_snapshot(error = TRUE, {
    mlp()
    mlp(outputs = 2.5)
    flax_module("A", rngs = 1, api = "nnx", call = function(self, inputs) inputs)
    flax_module("A", train = 1, api = "nnx", call = function(self, inputs) inputs)
    flax_module("A", api = "torch", call = function(self, inputs) inputs)
  })
})

test_that("a saved model with an NNX module from R continues training in a new session", {
  skip_without_flax()
  path <- withr::local_tempfile(fileext = ".keras")
  define <- "
    library(kerasflax)
    nnx <- reticulate::import('flax.nnx')
    net <- flax_module('Net', units = 3L, api = 'nnx',
      setup = function(self, rngs) {
        self$linear <- nnx$Linear(3L, self$units, rngs = rngs)
        self$dropout <- nnx$Dropout(0.5, rngs = rngs)
      },
      call = function(self, inputs) self$dropout(self$linear(inputs)))
    x <- matrix(seq(-1, 1, length.out = 12), 4)
    go_on <- function(model) {
      model$reset_metrics()
      c(train_on_batch(model, x, matrix(0, 4, 5)), predict(model, x, verbose = 0))
    }"
  old <- result_of(c(
    define,
    sprintf(
      "model <- keras_model_sequential(3) |> layer_flax_module_wrapper(net(units = 5))
     compile(model, 'adam', 'mse')
     fit(model, x, matrix(0, 4, 5), verbose = 0)
     save_model(model, '%s')
     result <- go_on(model)",
      path
    )
  ))
  expect_identical(result_of(c(define, sprintf("result <- go_on(load_model('%s'))", path))), old)
})

test_that("text that is not valid UTF-8 is an error in names, defaults and values of fields", {
  skip_without_flax()
  call <- function(self, inputs) inputs
  for (encoding in c("unknown", "bytes")) {
    text <- latin_word(encoding)
    argument <- "kerasflax_error_argument"
    expect_error(flax_module(text, call = call), ".name. must be valid UTF-8", class = argument)
    fields <- rlang::set_names(list(1), text)
    define <- function() flax_module("A", !!!fields, call = call)
    expect_error(define(), "names.* must be valid UTF-8", class = argument)
    expect_error(
      flax_module("A", mode = text, call = call),
      "mode. must be valid UTF-8",
      class = argument
    )
    make <- flax_module("A", mode = "same", call = call)
    expect_error(
      make(mode = text),
      "mode. must be valid UTF-8",
      class = "kerasflax_error_field"
    )
  }
  make <- flax_module("A", mode = "same", call = call)
  expect_identical(make(mode = latin_word("latin1"))$mode, "caf\u00e9")
})

test_that("a Keras layer, variable or seed generator inside a module is an error", {
  skip_without_flax()
  nn <- flax_linen()
  dense <- layer_dense(units = 4L)
  seed <- keras3::random_seed_generator(1L)
  calls <- list(
    function(self, inputs) (nn$Dense(1L))(layer_dense(inputs, 4L)),
    function(self, inputs) self$part(inputs),
    function(self, inputs) inputs * keras3::keras_variable(2),
    function(self, inputs) inputs + random_normal(c(1L, 4L), seed = seed)
  )
  for (call in calls) {
    module <- flax_module("Net", part = NULL, call = call)(part = dense)
    expect_error(
      keras_input(4) |> layer_flax_module_wrapper(module),
      "A Flax module cannot use a Keras",
      class = "kerasflax_error_state"
    )
  }
  by_nnx <- flax_module(
    "Net",
    api = "nnx",
    setup = function(self, rngs) self$dense <- layer_dense(units = 3L),
    call = function(self, inputs) self$dense(inputs)
  )
  expect_snapshot(error = TRUE, transform = scrub, {
    keras_input(4) |> layer_flax_module_wrapper(flax_module("Net", call = calls[[1]])())
    keras_input(4) |> layer_flax_module_wrapper(by_nnx())
  })
  # Functions of keras3 that hold no weights are available.
  relu <- flax_module("Net", call = function(self, inputs) op_relu(inputs))()
  expect_equal(as.array(layer_flax_module_wrapper(matrix(-1:2, 2), relu)), matrix(c(0, 0, 1, 2), 2))
})

test_that("a mistaken use of a constructor says what to do", {
  skip_without_flax()
  make <- flax_module(
    "Net",
    units = 4L,
    classes = flax_field("integer"),
    call = function(self, inputs) inputs
  )
  call <- function(self, inputs) inputs
  without_fields <- flax_module("Net", call = call)
  nnx_net <- flax_module("Net", units = 2L, api = "nnx", call = call)
  expect_snapshot(error = TRUE, {
    keras_input(4) |> make(classes = 3)
    keras_model_sequential(4) |> make()
    keras_input(4) |> without_fields()
    keras_input(4) |> make(2, 3)
    keras_input(4) |> nnx_net(units = 3)
    list(keras_input(4), keras_input(4)) |> make(classes = 3)
    matrix(1, 2, 4) |> make(classes = 3)
    matrix(1, 2, 4) |> without_fields()
    make(2, 3, width = 4)
    without_fields(1)
    make(classes = NULL)
    flax_module("Net", initialize = function(self) 1, call = call)
    flax_module("Net", build = function(self, input_shape) 1, call = call)
  })
})

test_that("a slip in a method is an error that says what to do", {
  skip_without_flax()
  nn <- flax_linen()
  layer_of <- function(call) {
    keras_input(4) |> layer_flax_module_wrapper(flax_module("Net", call = call)(), name = "net")
  }
  expect_snapshot(error = TRUE, transform = scrub, {
    layer_of(function(self, inputs) for (i in 1:2) inputs <- (nn$Dense(2))(inputs))
    layer_of(function(self, inputs) nn$Dense(2))
    layer_of(function(self, inputs) nn$Dense(2, inputs))
    layer_of(function(self, inputs) (nn$Dropout(0.5))(inputs))
    layer_of(function(self, inputs) (nn$BatchNorm())(inputs))
  })
})

test_that("fields may have any names", {
  skip_without_flax()
  call <- function(self, inputs) {
    inputs + self$definition + self$fields + self$frame + self$values
  }
  make <- flax_module("Net", definition = 1, fields = 2, frame = 3, values = 4, call = call)
  expect_equal(as.array(layer_flax_module_wrapper(matrix(0, 1, 1), make(fields = 5))), matrix(13))
})

test_that("the error of an embedding of numbers says how to declare an input of integers", {
  skip_without_flax()
  nn <- reticulate::import("flax.linen")
  words <- flax_module("Words", call = function(self, inputs) (nn$Embed(5, 2))(inputs))
  expect_error(
    keras_input(2) |> layer_flax_module_wrapper(words()),
    "keras_input(shape, dtype = \"int32\")",
    fixed = TRUE
  )
  output <- keras_input(2, dtype = "int32") |> layer_flax_module_wrapper(words())
  expect_identical(output$shape[[3]], 2L)
})
