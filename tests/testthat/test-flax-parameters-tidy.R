two_weights <- function() {
  new_parameters(list(
    layer = c("net", "net"),
    collection = list("params", "batch_stats"),
    path = c("params/__a__|b/kernel", "batch_stats/mean"),
    shape = list(c(3L, 2L), 4L),
    dtype = c("float32", "bfloat16"),
    size = c(6, 4),
    bytes = c(24, 8),
    trainable = c(TRUE, FALSE)
  ))
}

test_that("tidy() returns a plain tibble with the shapes as text", {
  skip_if_not_installed("generics")
  skip_if_not_installed("tibble")
  tidied <- generics::tidy(two_weights())
  expect_s3_class(tidied, c("tbl_df", "tbl", "data.frame"), exact = TRUE)
  expect_identical(tidied$path, c("params/__a__|b/kernel", "batch_stats/mean"))
  expect_identical(tidied$shape, c("3x2", "4"))
  expect_identical(tidied$size, c(6, 4))
  expect_identical(names(generics::tidy(two_weights()[c("path", "size")])), c("path", "size"))
})

test_that("glance() returns one row with the totals", {
  skip_if_not_installed("generics")
  glanced <- as.data.frame(generics::glance(two_weights()))
  expect_identical(
    glanced,
    data.frame(weights = 2L, parameters = 10, trainable = 6, non_trainable = 4, bytes = 32)
  )
  expect_identical(generics::glance(two_weights()[2, ])$bytes, 8)
  expect_snapshot(error = TRUE, generics::glance(two_weights()["path"]))
})

test_that("tidy() and glance() agree with Keras's counts", {
  skip_without_flax()
  skip_if_not_installed("generics")
  model <- keras_model_sequential(3) |>
    layer_flax_module_wrapper(flax_linen()$Dense(2L)) |>
    layer_batch_normalization()
  parameters <- flax_parameters(model)
  expect_equal(generics::glance(parameters)$parameters, model$count_params())
  expect_identical(nrow(generics::tidy(parameters)), length(model$weights))
})

test_that("knitr prints the table as a Markdown table with the totals as its caption", {
  skip_if_not_installed("knitr")
  expect_snapshot(cat(knitr::knit_print(two_weights())))
  printed <- capture.output(knitr::knit_print(two_weights()["path"]))
  expect_match(printed, "__a__", fixed = TRUE, all = FALSE)
})

test_that("Pandoc reads the table in a document as a table, with every name unchanged", {
  skip_on_cran()
  skip_if_not_installed("rmarkdown")
  skip_if_not(rmarkdown::pandoc_available())
  folder <- withr::local_tempdir()
  document <- file.path(folder, "document.Rmd")
  saveRDS(two_weights(), file.path(folder, "weights.rds"))
  writeLines(
    c(
      "```{r, echo = FALSE}",
      "invisible(loadNamespace('kerasflax'))",
      "readRDS('weights.rds')",
      "```"
    ),
    document
  )
  output <- rmarkdown::render(document, rmarkdown::html_fragment(), quiet = TRUE)
  html <- paste(readLines(output), collapse = "\n")
  expect_match(html, "<table")
  expect_match(html, ">params/__a__|b/kernel</td>", fixed = TRUE)
  expect_match(html, "<code>batch_stats/mean</code>", fixed = TRUE)
  expect_match(html, "10 parameters (32.00 B) in 2 weights; 6 trainable", fixed = TRUE)
})
