test_that("an exported model computes what the model does, with a module written in R", {
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

test_that("wrong arguments and files are refused", {
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
  expect_error(flax_import(tempfile()), class = "kerasflax_error_file")
})
