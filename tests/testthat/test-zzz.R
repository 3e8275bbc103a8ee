test_that("the name here wins in any order of library() calls, and a message says so", {
  skip_on_cran()
  for (code in c("library(kerasflax); library(keras3)", "library(keras3); library(kerasflax)")) {
    printed <- run_r(paste(
      code,
      '; cat("\\nfrom", environmentName(environment(layer_flax_module_wrapper)), "\\n")'
    ))
    expect_match(printed, "from kerasflax", fixed = TRUE)
    expect_match(printed, "take the place of keras3's", fixed = TRUE)
  }
})

test_that("loading declares what is needed of Python", {
  skip_on_cran()
  printed <- run_r("library(kerasflax); cat(reticulate::py_require()$packages)")
  for (requirement in paste0(names(python_floors), ">=", python_floors)) {
    expect_match(printed, requirement, fixed = TRUE)
  }
})

test_that("`training` reaches R functions in whatever order Python and the package are started", {
  skip_without_flax()
  for (first in c("invisible(reticulate::py_config())", "")) {
    printed <- run_r(c(
      first,
      "library(kerasflax)
       told <- NULL
       method <- function(module, inputs, training = FALSE) { told <<- c(told, training); module(inputs) }
       layer <- layer_flax_module_wrapper(module = reticulate::import('flax.linen')$Dense(2L), method = method)
       invisible(layer(matrix(1, 2, 2), training = TRUE))
       cat('\\ntold', tail(told, 1), '\\n')"
    ))
    expect_match(printed, "told TRUE", fixed = TRUE)
  }
})
