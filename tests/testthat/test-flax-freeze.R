freezable <- function() {
  keras_model_sequential(c(5, 5, 1)) |>
    layer_flax_module_wrapper(conv_net(), name = "net") |>
    compile(optimizer_adam(0.1), "mse")
}

test_that("frozen weights stay, get no slots, and are counted as not trainable", {
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
  # Two moments each of two weights, the count of steps and the learning rate.
  expect_length(model$optimizer$variables, 6)
  shown <- utils::capture.output(print(summary(model)))
  count <- sum(lengths(list(after$Dense_0$kernel, after$BatchNorm_0$scale)))
  expect_match(
    grep(" Trainable params", shown, value = TRUE),
    paste0(" ", count, " "),
    fixed = TRUE
  )
})

test_that("patterns may have names, and a layer that has been trained says that its model has to be compiled again", {
  skip_without_flax()
  model <- keras_model_sequential(3) |>
    layer_flax_module_wrapper(flax_linen()$Dense(2L), name = "net")
  compile(model, "sgd", "mse")
  expect_no_warning(flax_freeze(get_layer(model, "net"), c("params/bias" = "params/kernel")))
  expect_identical(unlist(get_layer(model, "net")$frozen), "params/kernel")
  fit(model, matrix(1, 2, 3), matrix(1, 2, 2), verbose = 0)
  expect_warning(flax_unfreeze(get_layer(model, "net")), "compile")
})

test_that("all weights are frozen and unfrozen without a pattern, and a trained model has to be compiled again", {
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

test_that("patterns that fit nothing and other mistakes say what is there", {
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
