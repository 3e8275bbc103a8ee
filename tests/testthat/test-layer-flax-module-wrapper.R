test_that("the first example of keras3's help page creates a model", {
  skip_without_flax()
  flax <- reticulate::import("flax")
  tuple <- reticulate::tuple

  MyFlaxModule(flax$linen$Module) %py_class% {
    `__call__` <- flax$linen$compact(\(self, inputs) {
      inputs |>
        (flax$linen$Conv(features = 32L, kernel_size = tuple(3L, 3L)))() |>
        flax$linen$relu() |>
        flax$linen$avg_pool(window_shape = tuple(2L, 2L),
                            strides = tuple(2L, 2L)) |>
        # flatten all except batch_size axis
        (\(x) x$reshape(tuple(x$shape[[1]], -1L)))() |>
        (flax$linen$Dense(features = 200L))() |>
        flax$linen$relu() |>
        (flax$linen$Dense(features = 10L))() |>
        flax$linen$softmax()
    })
  }

  # typical usage:
  input <- keras_input(c(28, 28, 3))
  output <- input |>
    layer_flax_module_wrapper(MyFlaxModule())

  model <- keras_model(input, output)

  # to instantiate the layer before composing:
  flax_module <- MyFlaxModule()
  keras_layer <- layer_flax_module_wrapper(module = flax_module)

  input <- keras_input(c(28, 28, 3))
  output <- input |>
    keras_layer()

  model <- keras_model(input, output)

  expect_equal(model$output_shape, list(NULL, 10L))
  x <- array(seq(0, 1, length.out = 2 * 28 * 28 * 3), c(2, 28, 28, 3))
  expected <- flax_module$apply(keras_layer$flax_variables, as_jax(x))
  expect_equal(predict(model, x, verbose = 0), as.array(expected), tolerance = 1e-5)
})

test_that("the second example of keras3's help page creates a model that trains", {
  skip_without_flax()
  flax <- reticulate::import("flax")

  MyFlaxModule(flax$linen$Module) %py_class% {
    forward <-
      flax$linen$compact(\(self, inputs1, input2, deterministic) {
        outputs <- flax$linen$Dense(4L)(inputs1) + flax$linen$Dense(4L)(input2)
        outputs <- flax$linen$Dropout(0.5)(outputs, deterministic = deterministic)
        outputs # return
      })
  }

  my_flax_module_wrapper <- function(module, inputs, training) {
    c(input1, input2) %<-% inputs
    module$forward(input1, input2, !training)
  }

  flax_module <- MyFlaxModule()
  keras_layer <- layer_flax_module_wrapper(module = flax_module,
                                           method = my_flax_module_wrapper)

  inputs <- list(keras_input(3), keras_input(2))
  model <- keras_model(inputs, inputs |> keras_layer())
  compile(model, "sgd", "mse")
  x <- list(targets(), targets(k = 2))
  fit(model, x, targets(k = 4), verbose = 0)

  variables <- keras_layer$flax_variables
  expected <- flax_module$apply(variables, as_jax(x[[1]]), as_jax(x[[2]]), TRUE, method = "forward")
  expect_equal(predict(model, x, verbose = 0), as.array(expected), tolerance = 1e-5)
  # Two evaluations in training mode differ, because dropout is active.
  in_training <- function() as.array(model(lapply(x, as_jax), training = TRUE))
  expect_false(isTRUE(all.equal(in_training(), in_training())))
})

test_that("an R method gets `training`: TRUE in fit(), FALSE in predict() and evaluate()", {
  skip_without_flax()
  nn <- flax_linen()
  modes <- logical()
  Sees(nn$Module) %py_class% {
    `__call__` <- nn$compact(\(self, inputs, training = FALSE) {
      modes <<- c(modes, training)
      (nn$Dense(3L))(inputs)
    })
  }
  input <- keras_input(3)
  model <- keras_model(input, input |> layer_flax_module_wrapper(Sees()))
  compile(model, "sgd", "mse")
  expect_equal(modes, FALSE)
  fit(model, targets(), targets(), verbose = 0)
  expect_true(any(modes))
  modes <- logical()
  predict(model, targets(4), verbose = 0)
  evaluate(model, targets(5), targets(5), verbose = 0)
  expect_equal(unique(modes), FALSE)
})

test_that("setup-style methods of a %py_class% get `training` too", {
  skip_without_flax()
  nn <- flax_linen()
  modes <- logical()
  SetUp(nn$Module) %py_class% {
    setup <- function(self) self$dense <- nn$Dense(3L)
    `__call__` <- function(self, inputs, training = FALSE) {
      modes <<- c(modes, training)
      self$dense(inputs)
    }
  }
  layer <- layer_flax_module_wrapper(module = SetUp())
  layer(targets())
  layer(targets(), training = TRUE)
  expect_equal(unique(modes), c(FALSE, TRUE))
  expect_setequal(paths_of(layer), paste0(layer$name, "/params/dense/", c("kernel", "bias")))
})

test_that("five training steps of an R module match plain Flax", {
  skip_without_flax()
  jax <- reticulate::import("jax")
  module <- conv_net(rate = 0)
  x <- images()
  y <- targets()
  variables <- module$init(jax$random$key(0L), as_jax(x))
  input <- keras_input(dim(x)[-1])
  layer <- layer_flax_module_wrapper(module = module, variables = variables)
  model <- keras_model(input, layer(input))
  compile(model, optimizer_sgd(0.1), "mse")
  history <- fit(model, x, y, batch_size = nrow(x), epochs = 5, shuffle = FALSE, verbose = 0)

  reticulate::py_run_string(
    "
def plain_steps(module, variables, x, y, steps, rate):
    import jax
    params, stats, losses = variables['params'], variables['batch_stats'], []
    def loss(params, stats):
        outputs, written = module.apply(
            {'params': params, 'batch_stats': stats}, x, training=True, mutable=['batch_stats'],
            rngs={'dropout': jax.random.key(0)})
        return ((outputs - y) ** 2).mean(), written['batch_stats']
    for _ in range(int(steps)):
        (value, stats), gradients = jax.value_and_grad(loss, has_aux=True)(params, stats)
        params = jax.tree.map(lambda p, g: p - rate * g, params, gradients)
        losses.append(float(value))
    return losses, {'params': params, 'batch_stats': stats}
"
  )
  plain <- reticulate::py$plain_steps(module, variables, as_jax(x), as_jax(y), 5L, 0.1)
  expect_equal(history$metrics$loss, unlist(plain[[1]]), tolerance = 1e-5)
  for (collection in c("params", "batch_stats")) {
    got <- rapply(layer$flax_variables[[collection]], as.array, how = "unlist")
    expected <- rapply(plain[[2]][[collection]], as.array, how = "unlist")
    expect_equal(got, expected, tolerance = 1e-4)
  }
})

test_that("a sequential model adds the layer in place, and the pipe continues", {
  skip_without_flax()
  nn <- flax_linen()
  model <- keras_model_sequential()
  result <- withVisible(
    model |>
      layer_flax_module_wrapper(nn$Dense(4L), name = "first") |>
      layer_flax_module_wrapper(nn$Dense(2L))
  )
  expect_false(result$visible)
  expect_identical(reticulate::py_id(result$value), reticulate::py_id(model))
  expect_length(model$layers, 2)
  model$build(reticulate::tuple(NULL, 3L))
  expect_equal(model$output_shape, list(NULL, 2L))
  expect_true(all(grepl("first/params/", paths_of(model$layers[[1]]), fixed = TRUE)))
})

test_that("a layer that cannot be built is removed from a sequential model", {
  skip_without_flax()
  nn <- flax_linen()
  x <- matrix(1, 4, 3)
  model <- keras_model_sequential(input_shape = 3) |> layer_dense(3)
  before <- predict(model, x, verbose = 0)
  expect_error(
    model |> layer_flax_module_wrapper(nn$Dense(4L), method = \(m, x) stop("no")),
    "no",
    class = "simpleError"
  )
  expect_error(
    model |> layer_flax_module_wrapper(nn$Dense(4L), variables = list(a = 1)),
    class = "kerasflax_error"
  )
  expect_length(model$layers, 1)
  expect_equal(predict(model, x, verbose = 0), before)
  model |> layer_flax_module_wrapper(nn$Dense(4L))
  expect_equal(dim(predict(model, x, verbose = 0)), c(4, 4))
})

test_that("named lists keep their order as inputs and outputs", {
  skip_without_flax()
  nn <- flax_linen()
  difference <- function(module, inputs) {
    c(query, context) %<-% inputs
    list(z = query - context, a = query)
  }
  ones <- matrix(1, 1, 1)
  layer <- layer_flax_module_wrapper(module = nn$Dense(1L), method = difference)
  result <- layer(list(query = 10 * ones, context = ones))
  expect_named(result, c("z", "a"))
  expect_equal(as.array(result$z), 9 * ones)
  inputs <- list(query = keras_input(1, name = "query"), context = keras_input(1, name = "context"))
  model <- keras_model(inputs, layer(inputs)$z)
  expect_equal(predict(model, list(query = 10 * ones, context = ones), verbose = 0), 9 * ones)
})

test_that("a part of the input may be NULL in one call and an array in the next", {
  skip_without_flax()
  nn <- flax_linen()
  nnx <- flax_nnx()
  with_extra <- function(module, inputs) {
    y <- module(inputs$main)
    if (is.null(inputs$extra)) y else y + inputs$extra
  }
  x <- targets()
  extra <- matrix(1, 8, 2)
  for (module in list(nn$Dense(2), flax_lazy(nnx$Linear, 3, 2))) {
    inputs <- list(
      main = keras_input(3, name = "main"),
      extra = keras_input(2, name = "extra", optional = TRUE)
    )
    layer <- layer_flax_module_wrapper(module = module, method = with_extra)
    model <- keras_model(inputs, layer(inputs))
    without <- predict(model, list(main = x, extra = NULL), verbose = 0)
    expect_equal(predict(model, list(main = x, extra = extra), verbose = 0), without + 1,
      tolerance = 1e-6
    )
    result <- layer_flax_module_wrapper(
      list(main = x, extra = NULL), module,
      method = with_extra, variables = flax_variables(layer)
    )
    expect_equal(as.array(result), without, tolerance = 1e-6)
  }
  pair <- function(module, inputs) {
    c(main, extra) %<-% inputs
    with_extra(module, list(main = main, extra = extra))
  }
  output <- list(keras_input(3), NULL) |> layer_flax_module_wrapper(nn$Dense(2), method = pair)
  expect_equal(output$shape, list(NULL, 2L))
})

test_that("the dots of a method get the parts of a named list that are not arguments", {
  skip_without_flax()
  x <- targets()
  ones <- list(params = list(kernel = matrix(1, 3, 1), bias = 0))
  scaled <- function(module, q, ...) module(q) * op_sum(list(...)$scale)
  result <- layer_flax_module_wrapper(
    list(scale = matrix(2, 8, 1), q = x), flax_linen()$Dense(1),
    method = scaled, variables = ones
  )
  expect_equal(as.array(result), array(16 * rowSums(x), c(8, 1)), tolerance = 1e-5)
  passed_on <- function(module, ...) module(...)
  result <- layer_flax_module_wrapper(
    x, flax_linen()$Dense(1),
    method = passed_on, variables = ones
  )
  expect_equal(as.array(result), array(rowSums(x), c(8, 1)), tolerance = 1e-5)
})

test_that("argument names that are invalid in Python are accepted", {
  skip_without_flax()
  nn <- flax_linen()
  ones <- list(params = list(kernel = matrix(1, 3, 1), bias = 0))
  dotted <- function(module, .x, na.rm = FALSE, `lambda` = 1, training = TRUE) {
    module(.x) * (if (training) NaN else 1)
  }
  result <- layer_flax_module_wrapper(targets(), nn$Dense(1L), method = dotted, variables = ones)
  expect_equal(as.array(result), array(rowSums(targets()), c(8, 1)), tolerance = 1e-6)
})

test_that("fit() builds a sequential model without an input shape", {
  skip_without_flax()
  model <- keras_model_sequential() |> layer_flax_module_wrapper(conv_net())
  compile(model, "sgd", "mse")
  history <- fit(model, images(), targets(), epochs = 2, verbose = 0)
  expect_true(all(is.finite(history$metrics$loss)))
  expect_length(model$weights, 8)
})

test_that("a sequential model without an input shape accepts integer tokens", {
  skip_without_flax()
  model <- keras_model_sequential() |>
    layer_flax_module_wrapper(flax_linen()$Embed(5L, 3L), name = "embed")
  compile(model, optimizer_sgd(0), "mse")
  tokens <- matrix(0:7 %% 5L, 4)
  fit(model, tokens, array(0, c(4, 2, 3)), verbose = 0)
  table <- as.array(get_layer(model, "embed")$flax_variables$params$embedding)
  expected <- array(table[t(tokens) + 1, ], c(2, 4, 3)) |> aperm(c(2, 1, 3))
  expect_equal(predict(model, tokens, verbose = 0), expected, tolerance = 1e-6)
})

test_that("path patterns select the weights to regularize and constrain", {
  skip_without_flax()
  layer <- layer_flax_module_wrapper(
    module = flax_linen()$Dense(3L),
    regularizers = list("params/kernel" = regularizer_l2(0.5)),
    constraints = list("**/kernel" = constraint_nonneg())
  )
  model <- keras_model_sequential(4) |> layer()
  kernel <- as.array(layer$flax_variables$params$kernel)
  expect_true(any(kernel < 0))
  expect_equal(as.numeric(layer$losses[[1]]), 0.5 * sum(kernel^2), tolerance = 1e-6)
  compile(model, "sgd", "mse")
  train_on_batch(model, matrix(1, 2, 4), matrix(1, 2, 3))
  expect_true(all(as.array(layer$flax_variables$params$kernel) >= 0))
})

test_that("saved weights and stream state give the same next training step", {
  skip_without_flax()
  model <- function(seed) {
    keras_model_sequential(c(5, 5, 1)) |>
      layer_flax_module_wrapper(conv_net(), seed = seed) |>
      compile(optimizer_sgd(0.1), "mse")
  }
  first <- model(1)
  fit(first, images(), targets(), epochs = 2, verbose = 0)
  file <- withr::local_tempfile(fileext = ".weights.h5")
  save_model_weights(first, file)
  second <- model(2)
  load_model_weights(second, file)
  expect_identical(predict(second, images(), verbose = 0), predict(first, images(), verbose = 0))
  # Keras 3.13 returns the mean loss of this batch and all earlier batches.
  first$reset_metrics()
  expect_identical(
    train_on_batch(second, images(), targets()),
    train_on_batch(first, images(), targets())
  )
})

test_that("the layer is called on arrays from R, NumPy and JAX immediately", {
  skip_without_flax()
  nn <- flax_linen()
  x <- targets()
  expected <- array(rowSums(x), c(8, 1))
  variables <- list(params = list(kernel = matrix(1, 3, 1), bias = 0))
  for (object in list(x, reticulate::np_array(x), as_jax(x))) {
    result <- layer_flax_module_wrapper(object, nn$Dense(1L), variables = variables)
    expect_true(inherits(result, "jax.Array") || inherits(result, "jaxlib._jax.ArrayImpl"))
    expect_equal(as.array(result), expected, tolerance = 1e-6)
  }
})

test_that("a module gets nested and named lists of tensors", {
  skip_without_flax()
  nn <- flax_linen()
  Nested(nn$Module) %py_class% {
    `__call__` <- nn$compact(\(self, inputs) {
      list(sum = inputs$a + inputs$b[[1]], first = (nn$Dense(2L))(inputs$a))
    })
  }
  inputs <- list(a = keras_input(3, name = "a"), b = list(keras_input(3)))
  outputs <- layer_flax_module_wrapper(inputs, Nested())
  expect_named(outputs, c("first", "sum"), ignore.order = TRUE)
  expect_equal(outputs$first$shape, list(NULL, 2L))
})

test_that("without an object, the layer is returned and can be called or used in a pipe", {
  skip_without_flax()
  nn <- flax_linen()
  for (layer in list(
    layer_flax_module_wrapper(module = nn$Dense(2L), seed = 1),
    layer_flax_module_wrapper(NULL, nn$Dense(2L), seed = 1)
  )) {
    expect_s3_class(layer, "keras.src.layers.layer.Layer")
    expect_equal((keras_input(3) |> layer())$shape, list(NULL, 2L))
  }
})

test_that("a method can be a name, bound, unbound, or a function in R or Python", {
  skip_without_flax()
  nn <- flax_linen()
  Coder(nn$Module) %py_class% {
    encode <- nn$compact(\(self, inputs, training = FALSE) (nn$Dense(2L))(inputs) * (1 + training))
    `__call__` <- function(self, inputs) -self$encode(inputs)
  }
  module <- Coder()
  x <- targets()
  variables <- list(params = list(Dense_0 = list(kernel = matrix(1, 3, 2), bias = c(0, 0))))
  reticulate::py_run_string("def python_method(module, inputs): return module.encode(inputs)")
  methods <- list(
    "encode",
    module$encode,
    reticulate::py_get_attr(module$`__class__`, "encode"),
    reticulate::py$python_method,
    function(module, inputs) module$encode(inputs)
  )
  for (method in methods) {
    result <- layer_flax_module_wrapper(x, module, method = method, variables = variables)
    expect_equal(as.array(result), array(rowSums(x), c(8, 2)), tolerance = 1e-6)
  }
})

test_that("variables can be a dict, a FrozenDict or a named list with vectors", {
  skip_without_flax()
  nn <- flax_linen()
  jax <- reticulate::import("jax")
  flax <- reticulate::import("flax")
  module <- conv_net()
  x <- images()
  dict <- module$init(jax$random$key(1L), as_jax(x))
  as_r <- function(tree) if (is.list(tree)) lapply(tree, as_r) else drop(as.array(tree))
  r_list <- as_r(dict)
  r_list$params$Conv_0$kernel <- as.array(dict$params$Conv_0$kernel)
  expected <- as.array(module$apply(dict, as_jax(x)))
  for (variables in list(dict, flax$core$freeze(dict), r_list)) {
    result <- layer_flax_module_wrapper(x, module, variables = variables)
    expect_equal(as.array(result), expected, tolerance = 1e-5)
  }
})

test_that("integer params are trained as floats", {
  skip_without_flax()
  nn <- flax_linen()
  layer <- layer_flax_module_wrapper(
    module = nn$Dense(2L),
    variables = list(params = list(kernel = matrix(1:6, 3, 2), bias = c(1L, 2L)))
  )
  result <- layer(diag(3))
  expect_equal(as.array(result), matrix(1:6, 3, 2) + rep(1:2, each = 3))
  expect_equal(unique(vapply(layer$weights, \(weight) weight$dtype, "")), "float32")
})

test_that("arrays passed as variables stay usable after fit()", {
  skip_without_flax()
  jax <- reticulate::import("jax")
  module <- conv_net()
  variables <- module$init(jax$random$key(1L), as_jax(images()))
  before <- as.array(variables$params$Dense_0$kernel)
  input <- keras_input(c(5, 5, 1))
  model <- keras_model(input, layer_flax_module_wrapper(input, module, variables = variables))
  compile(model, "adam", "mse")
  fit(model, images(), targets(), epochs = 2, verbose = 0)
  expect_identical(as.array(variables$params$Dense_0$kernel), before)
  trained <- model$layers[[2]]$flax_variables$params$Dense_0$kernel
  expect_false(isTRUE(all.equal(as.array(trained), before)))
})

test_that("the layer accepts name, trainable, dtype, seed and activity_regularizer", {
  skip_without_flax()
  nn <- flax_linen()
  layer <- layer_flax_module_wrapper(
    module = nn$Dense(2L),
    name = "dense",
    trainable = FALSE,
    dtype = "mixed_bfloat16",
    seed = 4294967295,
    activity_regularizer = regularizer_l2(0.1)
  )
  result <- layer(targets())
  expect_equal(layer$name, "dense")
  expect_length(layer$trainable_weights, 0)
  expect_match(as.character(reticulate::py_str(result$dtype)), "bfloat16")
  expect_length(layer$losses, 1)
  same <- \(seed) as.array(layer_flax_module_wrapper(targets(), nn$Dense(2L), seed = seed))
  expect_identical(same(3), same(3L))
  expect_false(identical(same(3), same(4)))
})

test_that("summary() shows the layer and counts its trainable parameters", {
  skip_without_flax()
  input <- keras_input(c(5, 5, 1))
  model <- keras_model(input, layer_flax_module_wrapper(input, conv_net(), name = "net"))
  shown <- paste(capture.output(print(model)), collapse = "\n")
  expect_match(shown, "net (FlaxLayer)", fixed = TRUE)
  expect_match(shown, "Trainable params: 63 ", fixed = TRUE)
  expect_match(shown, "Non-trainable params: 8 ", fixed = TRUE)
})

test_that("building and training do not import TensorFlow", {
  skip_without_flax()
  printed <- run_r(
    '
    library(kerasflax)
    nn <- reticulate::import("flax.linen")
    model <- keras_model_sequential() |> layer_flax_module_wrapper(nn$Dense(2L))
    compile(model, "sgd", "mse")
    x <- matrix(1, 4, 3); y <- matrix(1, 4, 2)
    fit(model, x, y, verbose = 0)
    evaluate(model, x, y, verbose = 0)
    predict(model, x, verbose = 0)
    cat("\\nimported:", reticulate::py_eval("\'tensorflow\' in __import__(\'sys\').modules"), "\\n")
  '
  )
  expect_match(printed, "imported: FALSE", fixed = TRUE)
})

test_that("whole doubles are accepted for integer fields", {
  skip_without_flax()
  nn <- flax_linen()
  Net(nn$Module) %py_class% {
    `__call__` <- nn$compact(\(self, inputs) {
      x <- (nn$Conv(features = 4, kernel_size = c(3, 3), strides = 2))(inputs)
      x <- x$reshape(reticulate::tuple(x$shape[[1]], -1L))
      (nn$Dense(2))(x)
    })
  }
  layer <- layer_flax_module_wrapper(module = Net())
  expect_equal(dim(as.array(layer(images()))), c(8, 2))
  expect_equal(layer$flax_variables$params$Conv_0$kernel$shape, list(3L, 3L, 1L, 4L))
  expect_equal(
    dim(as.array(layer_flax_module_wrapper(images(), nn$Conv(2, kernel_size = c(3, 3))))),
    c(8, 5, 5, 2)
  )
  expect_snapshot(error = TRUE, transform = scrub, {
    layer_flax_module_wrapper(targets(), nn$Dense(2.5))
    layer_flax_module_wrapper(images(), nn$Conv(2, kernel_size = c(3, 2.5)))
  })
})

test_that("bridged modules get the mode and random streams in both directions", {
  skip_without_flax()
  nn <- flax_linen()
  nnx <- flax_nnx()
  x <- matrix(seq(-1, 1, length.out = 12), 4, 3)
  net <- flax_module(
    "Net",
    api = "nnx",
    setup = function(self, rngs) {
      self$norm <- nnx$BatchNorm(3L, rngs = rngs)
      self$dropout <- nnx$Dropout(0.5, rngs = rngs)
    },
    call = function(self, inputs) self$dropout(self$norm(inputs))
  )
  to_linen <- nnx$bridge$ToLinen(reticulate::r_to_py(net))
  dropout <- nnx$bridge$ToNNX(nn$Dropout(0.5), rngs = nnx$Rngs(0L))
  for (layer in c(
    layer_flax_module_wrapper(module = to_linen),
    layer_flax_module_wrapper(module = dropout)
  )) {
    first <- as.array(layer(x))
    expect_identical(as.array(layer(x)), first)
    training <- as.array(layer(x, training = TRUE))
    expect_false(identical(training, as.array(layer(x, training = TRUE))))
  }
})

test_that("given variables build a module that cannot be initialized for the input", {
  skip_without_flax()
  nn <- flax_linen()
  decoder <- flax_module("Decoder", call = function(self, inputs) {
    if (self$is_initializing() && inputs$shape[[2]] != 8L) {
      stop("The cache must be made for 8 steps.")
    }
    (nn$MultiHeadDotProductAttention(num_heads = 1L, decode = TRUE))(inputs)
  })
  whole <- layer_flax_module_wrapper(module = decoder())
  whole$build(list(2L, 8L, 4L))
  step <- layer_flax_module_wrapper(module = decoder(), variables = flax_variables(whole))
  expect_identical(dim(as.array(step(array(1, c(2, 1, 4))))), c(2L, 1L, 4L))
})

test_that("layers are named after the classes of their modules", {
  skip_without_flax()
  mlp <- flax_module("MyMLP", call = function(self, inputs) (flax_linen()$Dense(3))(inputs))
  model <- keras_model_sequential(3) |>
    layer_flax_module_wrapper(mlp()) |>
    layer_flax_module_wrapper(mlp()) |>
    layer_flax_module_wrapper(flax_lazy(flax_nnx()$Linear, 3, 2)) |>
    layer_flax_module_wrapper(flax_linen()$LayerNorm(), name = "own")
  names <- vapply(model$layers, \(layer) layer$name, "")
  # Other tests may have created layers with the same names.
  expect_equal(sub("_[0-9]+$", "", names), c("my_mlp", "my_mlp", "linear", "own"))
  expect_identical(anyDuplicated(names), 0L)
  expect_named(flax_variables(model), names)
  path <- withr::local_tempfile(fileext = ".keras")
  save_model(model, path)
  expect_named(flax_variables(load_model(path)), names)
})

test_that("an input with another number of columns than the weights need is an error", {
  skip_without_flax()
  nn <- flax_linen()
  nnx <- flax_nnx()
  net <- flax_module("Net",
    units = 2L, api = "nnx",
    setup = function(self, rngs) self$dense <- nnx$Linear(4, self$units, rngs = rngs),
    call = function(self, inputs) self$dense(inputs)
  )
  wrong <- matrix(1, 6, 3)
  expect_snapshot(error = TRUE, transform = scrub, {
    layer_flax_module_wrapper(wrong, net(), name = "net")
    layer_flax_module_wrapper(wrong, flax_lazy(nnx$Linear, 4, 2), name = "linear")
    layer_flax_module_wrapper(keras_input(3), net(rngs = nnx$Rngs(0)), name = "net")
  })
  layer <- layer_flax_module_wrapper(module = nn$Dense(2))
  layer(matrix(1, 6, 4))
  expect_error(layer(wrong), "expected axis -1 of input shape to have value 4")
})

test_that("after a failed predict(), weights that Keras has lost can be loaded", {
  skip_without_flax()
  nn <- flax_linen()
  model <- keras_model_sequential() |> layer_flax_module_wrapper(nn$Dense(2), name = "dense")
  x <- matrix(1, 6, 4)
  before <- predict(model, x, verbose = 0)
  path <- withr::local_tempfile(fileext = ".weights.h5")
  save_model_weights(model, path)
  expect_error(predict(model, matrix(1, 6, 3), verbose = 0), "have value 4", fixed = TRUE)
  expect_error(predict(model, x, verbose = 0), "load_model_weights()", fixed = TRUE)
  expect_snapshot(error = TRUE, transform = scrub, {
    flax_variables(model)
    save_model(model, withr::local_tempfile(fileext = ".keras"))
  })
  load_model_weights(model, path)
  expect_equal(predict(model, x, verbose = 0), before)
})

test_that("a model's weights that Keras has lost are an error of save_model()", {
  skip_without_flax()
  model <- keras_model_sequential() |>
    layer_dense(3, name = "first") |>
    layer_flax_module_wrapper(flax_linen()$Dense(2), name = "dense")
  predict(model, matrix(1, 6, 4), verbose = 0)
  # The layer of Keras fails.
  expect_error(predict(model, matrix(1, 6, 3), verbose = 0))
  path <- withr::local_tempfile(fileext = ".keras")
  expect_error(save_model(model, path), "load_model_weights()", class = "kerasflax_error_state")
  expect_false(file.exists(path))
})

test_that("a layer in a RematScope trains as it does without the scope", {
  skip_without_flax()
  keras <- reticulate::import("keras")
  losses <- vapply(c(TRUE, FALSE), \(is_rematerialized) {
    scope <- keras$RematScope(mode = if (is_rematerialized) "full")
    layer <- with(scope, layer_flax_module_wrapper(module = conv_net(), seed = 1))
    model <- keras_model_sequential(c(5, 5, 1)) |> layer()
    compile(model, optimizer_sgd(0.1), "mse")
    fit(model, images(), targets(), shuffle = FALSE, epochs = 2, verbose = 0)$metrics$loss
  }, c(0, 0))
  expect_equal(losses[, 1], losses[, 2], tolerance = 1e-5)
})

test_that("quantize() leaves a Flax layer as it is, and enable_lora() says why not", {
  skip_without_flax()
  model <- keras_model_sequential(4) |>
    layer_flax_module_wrapper(flax_linen()$Dense(3), name = "flax")
  before <- get_weights(model)
  reticulate::py_capture_output(model$quantize("int8"))
  expect_identical(get_weights(model), before)
  expect_error(model$layers[[1]]$quantize("int8"), "keeps its weights as they are")
  expect_error(model$layers[[1]]$enable_lora(2L), "LoRA")
})

test_that("an abstract NNX module takes its weights from `variables`", {
  skip_without_flax()
  nnx <- flax_nnx()
  make <- function() nnx$Linear(3, 2, rngs = nnx$Rngs(0))
  abstract <- nnx$eval_shape(make)
  variables <- list(params = list(kernel = matrix(1:6, 3) + 0, bias = c(1, -1)))
  result <- layer_flax_module_wrapper(targets(), abstract, variables = variables)
  expected <- targets() %*% variables$params$kernel + rep(c(1, -1), each = 8)
  expect_equal(as.array(result), expected, tolerance = 1e-6)
  expect_snapshot(error = TRUE, {
    layer_flax_module_wrapper(targets(), abstract)
    layer_flax_module_wrapper(targets(), abstract, variables = variables$params)
  })
})

test_that("a part that always normalizes by the batch is named in a warning", {
  skip_without_flax()
  nn <- flax_linen()
  net <- flax_module("Net", call = function(self, inputs) {
    nn$BatchNorm(use_running_average = FALSE)(nn$Dense(2)(inputs))
  })
  warned <- function(module) {
    reticulate::py_capture_output(
      keras_input(3) |> layer_flax_module_wrapper(module),
      type = "stderr"
    )
  }
  output <- warned(net())
  expect_match(output, "is off in Net/BatchNorm_0", fixed = TRUE)
  expect_match(output, "pass `use_running_average = !training` on", fixed = TRUE)
  output <- warned(nn$BatchNorm(use_running_average = FALSE))
  expect_match(output, "Leave it NULL, and the layer sets it to the mode", fixed = TRUE)
  expect_no_match(warned(nn$BatchNorm()), "normalizes")
})
