history_of <- function(metrics, epochs) {
  structure(
    list(params = list(epochs = epochs), metrics = metrics),
    class = "keras_training_history"
  )
}

test_that("a training history is plotted without TensorFlow", {
  skip_if_not_installed("ggplot2")
  history <- history_of(list(loss = c(3, 2, 1), val_loss = c(4, 3, 2)), 3L)
  withr::local_pdf(NULL)
  plotted <- plot(history)
  expect_s3_class(plotted, "ggplot")
  data <- ggplot2::ggplot_build(plotted)$data[[1]]
  expect_equal(data$y, c(3, 2, 1, 4, 3, 2))
  # Training and validation have colors of their own.
  expect_length(unique(data$fill), 2)
  expect_null(plot(history, method = "base"))
  alone <- plot(history_of(list(loss = c(3, 2)), 2L), theme_bw = TRUE)
  expect_length(unique(ggplot2::ggplot_build(alone)$data[[1]]$fill), 1)
})

test_that("the history of a model with a Flax layer is plotted", {
  skip_without_flax()
  skip_if_not_installed("ggplot2")
  model <- keras_model_sequential(3) |>
    layer_flax_module_wrapper(flax_linen()$Dense(1L))
  model |> compile("sgd", "mse")
  history <- model |>
    fit(matrix(1, 4, 3), matrix(1, 4, 1), epochs = 2, validation_split = 0.5, verbose = 0)
  withr::local_pdf(NULL)
  expect_length(unique(ggplot2::ggplot_build(plot(history))$data[[1]]$fill), 2)
  expect_false(reticulate::py_module_available("tensorflow"))
})
