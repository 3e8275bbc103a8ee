freezable <- function() {
  keras_model_sequential(c(5, 5, 1)) |>
    layer_flax_module_wrapper(conv_net(), name = "net") |>
    compile(optimizer_adam(0.1), "mse")
}

test_that("frozen weights stay constant, get no optimizer slots and count as non-trainable", {
  skip_without_flax()
  model <- freezable()
  flax_freeze(model, c("net/params/Conv_0/**", "**/bias"))
  expect_length(model$trainable_weights, 2)
  before <- flax_variables(model)$net$params
  fit(model, images(), targets(), verbose = 0)
  after <- flax_variables(model)$net$params
  expect_identical(after$Conv_0, before$Conv_0)
  expect_identical(after$Dense_0$bias, before$Dense_0$bias)
  expect_false(identical(after$Dense_0$kernel, before$Dense_0$kernel))
  # Two moments for each of two weights, the number of steps, and the learning rate.
  expect_length(model$optimizer$variables, 6)
  shown <- utils::capture.output(print(summary(model)))
  count <- sum(lengths(list(after$Dense_0$kernel, after$BatchNorm_0$scale)))
  expect_match(
    grep(" Trainable params", shown, value = TRUE),
    paste0(" ", count, " "),
    fixed = TRUE
  )
})

test_that("patterns can have names, and freezing a trained layer warns to compile its model", {
  skip_without_flax()
  model <- keras_model_sequential(3) |>
    layer_flax_module_wrapper(flax_linen()$Dense(2L), name = "net")
  compile(model, "sgd", "mse")
  expect_no_warning(flax_freeze(get_layer(model, "net"), c("params/bias" = "params/kernel")))
  expect_identical(unlist(get_layer(model, "net")$frozen), "params/kernel")
  fit(model, matrix(1, 2, 3), matrix(1, 2, 2), verbose = 0)
  expect_warning(flax_unfreeze(get_layer(model, "net")), "compile")
})

test_that("without a pattern, all weights are frozen, and a trained model warns to compile again", {
  skip_without_flax()
  model <- freezable()
  expect_invisible(flax_freeze(model))
  expect_length(model$trainable_weights, 0)
  flax_unfreeze(model)
  expect_length(model$trainable_weights, 6)
  fit(model, images(), targets(), verbose = 0)
  expect_warning(flax_freeze(model, "net/params/Conv_0/*"), "compile")
  compile(model, "sgd", "mse")
  expect_no_warning(flax_freeze(model, "net/params/Conv_0/*"))
  fit(model, images(), targets(), verbose = 0)
  expect_length(model$trainable_weights, 4)
})

test_that("errors about patterns and objects say what exists", {
  skip_without_flax()
  model <- freezable()
  expect_snapshot(error = TRUE, transform = scrub, {
    flax_freeze(model, "params/Dense_0/kernel")
    flax_freeze(model, "net/batch_stats/**")
    flax_freeze(model, 1)
    flax_freeze(model, character())
    flax_freeze("net/**")
    flax_unfreeze(layer_dense(units = 1, name = "dense"))
    flax_freeze(layer_flax_module_wrapper(module = flax_linen()$Dense(1L), name = "new"))
  })
  expect_length(model$trainable_weights, 6)
})

test_that("a pattern that is not valid UTF-8 is an error, and nothing is frozen", {
  skip_without_flax()
  model <- freezable()
  for (encoding in c("unknown", "bytes")) {
    expect_error(
      flax_freeze(model, c("**/bias", latin_word(encoding))),
      "`path` must be valid UTF-8.*<e9>",
      class = "kerasflax_error_argument"
    )
  }
  expect_length(model$trainable_weights, 6)
})
