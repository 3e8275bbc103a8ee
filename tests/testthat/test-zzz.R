test_that("the name here wins in any order of library() calls, and a message says so", {
  skip_on_cran()
  for (code in c("library(kerasflax); library(keras3)", "library(keras3); library(kerasflax)")) {
    printed <- run_r(paste(code, '; cat("\\nfrom", environmentName(environment(layer_flax_module_wrapper)), "\\n")'))
    expect_match(printed, "from kerasflax", fixed = TRUE)
    expect_match(printed, "takes the place of keras3's", fixed = TRUE)
  }
})

test_that("loading declares what is needed of Python", {
  skip_on_cran()
  printed <- run_r("library(kerasflax); cat(reticulate::py_require()$packages)")
  for (requirement in paste0(names(python_floors), ">=", python_floors)) {
    expect_match(printed, requirement, fixed = TRUE)
  }
})
