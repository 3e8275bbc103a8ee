test_that("loading the package sets an unset backend to JAX without starting Python", {
  skip_on_cran()
  for (before in c(
    'Sys.unsetenv("KERAS_BACKEND")',
    'Sys.setenv(KERAS_BACKEND = "tensorflow")',
    "library(keras3)",
    ""
  )) {
    printed <- run_r(
      c(
        before,
        'library(kerasflax)
         cat("\n", Sys.getenv("KERAS_BACKEND"), reticulate::py_available(), "\n")'
      ),
      env = c(KERAS_BACKEND = "")
    )
    expect_match(printed, "jax FALSE", fixed = TRUE)
  }
})

test_that("another chosen backend stays, and the layer's error says what to do", {
  skip_without_flax()
  printed <- run_r(
    'library(kerasflax)
     nn <- reticulate::import("flax.linen")
     error <- tryCatch(layer_flax_module_wrapper(module = nn$Dense(2L)), error = identity)
     cat("\\n", class(error)[[1]], Sys.getenv("KERAS_BACKEND"), "\\n")
     cat(conditionMessage(error))',
    env = c(KERAS_BACKEND = "numpy")
  )
  expect_match(printed, "kerasflax_error_backend numpy", fixed = TRUE)
  expect_match(printed, "Keras runs on \"numpy\"", fixed = TRUE)
  expect_match(printed, "Restart R", fixed = TRUE)
})

test_that("a backend of Keras that is already loaded counts as a choice", {
  skip_without_flax()
  printed <- run_r(
    'library(keras3)
     use_backend("numpy")
     nn <- reticulate::import("flax.linen")
     keras$config$backend()
     library(kerasflax)
     error <- tryCatch(layer_flax_module_wrapper(module = nn$Dense(2L)), error = identity)
     cat("\\n", class(error)[[1]], "\\n")'
  )
  expect_match(printed, "kerasflax_error_backend", fixed = TRUE)
})
