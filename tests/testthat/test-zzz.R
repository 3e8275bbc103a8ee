test_that("the package masks keras3's functions in any order of library() calls, and R says so", {
  skip_on_cran()
  for (code in c("library(kerasflax); library(keras3)", "library(keras3); library(kerasflax)")) {
    printed <- run_r(paste(
      code,
      '; cat("\\nfrom", environmentName(environment(layer_flax_module_wrapper)), "\\n")'
    ))
    expect_match(printed, "from kerasflax", fixed = TRUE)
    # Once: the functions are named by R's message alone.
    expect_length(gregexpr("save_model", printed, fixed = TRUE)[[1]], 1)
    expect_match(printed, "masked from .package:keras3.:\\s+layer_flax_module_wrapper, save_model")
  }
})

test_that("loading the package declares the required Python packages", {
  skip_on_cran()
  printed <- run_r("library(kerasflax); cat(reticulate::py_require()$packages)")
  for (requirement in paste0(names(python_floors), ">=", python_floors)) {
    expect_match(printed, requirement, fixed = TRUE)
  }
})

test_that("R functions get `training` in any start order of Python and the package", {
  skip_without_flax()
  for (first in c("invisible(reticulate::py_config())", "")) {
    printed <- run_r(c(
      first,
      "library(kerasflax)
       modes <- NULL
       method <- function(module, inputs, training = FALSE) {
         modes <<- c(modes, training)
         module(inputs)
       }
       nn <- reticulate::import('flax.linen')
       layer <- layer_flax_module_wrapper(module = nn$Dense(2L), method = method)
       invisible(layer(matrix(1, 2, 2), training = TRUE))
       cat('\\nmode', tail(modes, 1), '\\n')"
    ))
    expect_match(printed, "mode TRUE", fixed = TRUE)
  }
})
