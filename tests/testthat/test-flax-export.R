test_that("an exported model with a module written in R computes the model's predictions", {
  skip_without_flax()
  skip_if_not(reticulate::py_module_available("flatbuffers"), "flatbuffers is not installed")
  path <- withr::local_tempfile(fileext = ".stablehlo")
  model <- keras_model_sequential(c(5, 5, 1)) |> layer_flax_module_wrapper(conv_net())
  expect_invisible(flax_export(model, path, platforms = "cpu"))
  run <- flax_import(path)
  for (n in c(1, 8)) {
    expect_equal(run(images(n)), predict(model, images(n), verbose = 0), tolerance = 1e-6)
  }
  expect_snapshot(error = TRUE, {
    run()
    run(1:3)
    run("a")
  })
})

test_that("a new session and JAX alone run an exported R module without its definition", {
  skip_without_flax()
  skip_if_not(reticulate::py_module_available("flatbuffers"), "flatbuffers is not installed")
  path <- withr::local_tempfile(fileext = ".stablehlo")
  nn <- flax_linen()
  net <- flax_module("Exported", units = 2L, call = function(self, inputs, training = FALSE) {
    x <- (nn$BatchNorm())(inputs, use_running_average = !training)
    (nn$Dense(self$units))((nn$Dropout(0.5))(x, deterministic = !training))
  })
  model <- keras_model_sequential(3) |> layer_flax_module_wrapper(net(units = 4))
  flax_export(model, path)
  x <- matrix(seq(-1, 1, length.out = 15), 5)
  expected <- predict(model, x, verbose = 0)
  imported <- result_of(sprintf(
    "library(kerasflax); result <- flax_import('%s')(matrix(seq(-1, 1, length.out = 15), 5))",
    path
  ))
  expect_equal(imported, expected, tolerance = 1e-6)
  code <- withr::local_tempfile(
    fileext = ".py",
    lines = c(
      "import sys, pathlib, jax.export, numpy as np",
      "run = jax.export.deserialize(bytearray(pathlib.Path(sys.argv[1]).read_bytes())).call",
      "print(*np.asarray(run(np.linspace(-1, 1, 15, dtype=np.float32).reshape(3, 5).T)).ravel())",
      "assert not {'keras', 'flax', 'kerasflax', 'tensorflow'} & set(sys.modules)"
    )
  )
  printed <- system2(Sys.getenv("RETICULATE_PYTHON"), c(code, path), stdout = TRUE)
  expect_equal(
    matrix(scan(text = printed, quiet = TRUE), 5, byrow = TRUE),
    expected,
    tolerance = 1e-6
  )
})

test_that("wrong arguments and files are errors", {
  skip_without_flax()
  skip_if_not(reticulate::py_module_available("flatbuffers"), "flatbuffers is not installed")
  path <- withr::local_tempfile(lines = "something else")
  expect_error(flax_export(1, path), class = "kerasflax_error_object")
  layer <- layer_flax_module_wrapper(module = flax_linen()$Dense(1L))
  expect_error(flax_export(layer, path), class = "kerasflax_error_argument")
  model <- keras_model_sequential(3) |> layer_flax_module_wrapper(flax_linen()$Dense(1L))
  expect_error(flax_export(model, 3), class = "kerasflax_error_argument")
  expect_error(flax_export(model, path, platforms = 1), class = "kerasflax_error_argument")
  expect_identical(readLines(path), "something else")
  expect_error(flax_import(path), class = "kerasflax_error_file")
  expect_error(flax_import(path), "`checked = FALSE`", fixed = TRUE)
  expect_error(
    flax_import(path, checked = FALSE),
    "`jax.export` did not write it",
    class = "kerasflax_error_file"
  )
  expect_error(flax_import(path, checked = NA), class = "kerasflax_error_argument")
  expect_error(flax_import(tempfile()), class = "kerasflax_error_file")
})

test_that("a platform that is not valid UTF-8 is an error", {
  expect_error(
    flax_export(NULL, "model.stablehlo", platforms = latin_word("unknown")),
    "`platforms` must be valid UTF-8",
    class = "kerasflax_error_argument"
  )
})
